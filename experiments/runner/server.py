"""The server that forks a sweep's stages: where its sockets lie, and its end. Torch-free."""

import contextlib
import fcntl
import multiprocessing
import multiprocessing.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from datamodules.errors import InputError

LONGEST_ADDRESS = 107 if sys.platform == "linux" else 103
"""Bytes of a socket's path, as the system's `sockaddr_un` has room for."""
ROOM = len("/pymp-12345678/listener-12345678")
"""What multiprocessing adds to the temporary folder."""
OTHERS_ROOM = len("/wandb-1234567-1234567-1234567890/socket")
"""What other libraries add to it at most."""
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
OWNER = "sonosweep"
"""In a sweep's temporary folder: locked by the processes that use it, until the last one ends."""


def socket_folder() -> str:
    """The temporary folder, or a shorter one where its path is too long for a socket's; InputError
    where none can be written.
    """
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise InputError(
            f"TMPDIR={os.environ.get('TMPDIR', '')}: {error.strerror}; set it to a folder that can "
            "be written"
        ) from error
    if len(os.fsencode(folder)) + ROOM <= LONGEST_ADDRESS:
        return folder
    for short in SHORT_FOLDERS:
        if Path(short).is_dir() and os.access(short, os.W_OK | os.X_OK):
            return short
    raise InputError(
        f"TMPDIR={folder}: too long for sockets ({LONGEST_ADDRESS - ROOM} bytes at most), and none "
        f"of {', '.join(SHORT_FOLDERS)} can be written; set TMPDIR to a shorter folder"
    )


def use_short_sockets() -> None:
    """Have this process, and those that it starts by multiprocessing, make sockets where they may.

    All else that is temporary stays in the temporary folder.
    """
    usual, short = tempfile.gettempdir(), socket_folder()
    if short != usual:
        tempfile.tempdir = short
        try:
            # Made once, removed at the end, and inherited.
            multiprocessing.util.get_temp_dir()
        finally:
            tempfile.tempdir = usual


def start_server(preload: Sequence[str]) -> ForkServerContext:
    """A context whose processes are forked from one that has imported the modules.

    The server ends with this process, before the command returns. Neither it nor what is forked
    from it answers SIGINT, which a terminal sends to all of them: this process ends them.
    """
    use_short_sockets()
    _own(Path(multiprocessing.util.get_temp_dir()))
    spawner = multiprocessing.get_context("forkserver")
    spawner.set_forkserver_preload(list(preload))
    # After its processes were waited for, and before the folder of its socket is removed.
    multiprocessing.util.Finalize(None, _end_server, exitpriority=-50)
    # What is ignored here is ignored there from the first instruction on, through seconds of
    # imports that it would otherwise end.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _own_temporary_folder():
            forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, previous)
    return spawner


def _own(folder: Path) -> None:
    """Lock a temporary folder, and remove those beside it that killed sweeps have left."""
    for marker in folder.parent.glob(f"pymp-*/{OWNER}"):
        with contextlib.suppress(OSError), marker.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(marker.parent, ignore_errors=True)
    # It has its name once it is locked.
    descriptor, unnamed = tempfile.mkstemp(dir=folder)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    Path(unnamed).rename(folder / OWNER)


def share_temporary_folder() -> None:
    """Keep the folder of the sweep that this process was forked for until this one ends too."""
    if multiprocessing.parent_process() is None:
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(Path(multiprocessing.util.get_temp_dir()) / OWNER, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)


@contextlib.contextmanager
def _own_temporary_folder() -> Iterator[None]:
    """Give a process that starts here multiprocessing's folder, which ends with this process: what
    libraries leave in it (W&B's folders, for stages end without their exit handlers) goes too."""
    usual, own = tempfile.gettempdir(), multiprocessing.util.get_temp_dir()
    kept = {name: os.environ.get(name) for name in ("TMPDIR", "TORCHINDUCTOR_CACHE_DIR")}
    if Path(own).parent == Path(usual) and len(os.fsencode(own)) + OTHERS_ROOM <= LONGEST_ADDRESS:
        # Compiled kernels are for later sweeps too.
        kernels = kept["TORCHINDUCTOR_CACHE_DIR"] or f"{usual}/torchinductor_{os.getuid()}"
        os.environ |= {"TMPDIR": own, "TORCHINDUCTOR_CACHE_DIR": kernels}
    try:
        yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def start_first(process: BaseProcess) -> None:
    """Start a server's first process, which waits for its imports, a minute on a busy machine.

    A signal that this process answers ends the server and so the wait, by an EOFError or a
    ConnectionError.
    """
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = {number: answer for number, answer in previous.items() if callable(answer)}

    def give_up(number: int, frame: FrameType | None) -> None:
        _kill_server()
        ours[number](number, frame)

    for number in ours:
        signal.signal(number, give_up)
    try:
        process.start()
    finally:
        for number, answer in ours.items():
            signal.signal(number, answer)


def _kill_server() -> None:
    if forkserver._forkserver._forkserver_pid is not None:
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)


def _end_server() -> None:
    # By itself it would take seconds to unload torch.
    _kill_server()
    # Nothing where there is none.
    forkserver._forkserver._stop()
