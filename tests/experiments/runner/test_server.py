"""Processes of a sweep: their sockets fit, and none of them is left behind."""

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from datamodules.hc18 import end_with_parent

PROGRAM = """
import os, signal, sys, tempfile, time
from experiments.runner.server import start_server
from experiments.runner.worker import stop_with_parent

def work(end, seconds):
    stop_with_parent()
    end.send((os.getppid(), tempfile.gettempdir()))
    time.sleep(seconds)

if __name__ == "__main__":
    is_killed, spawner = sys.argv[1] == "killed", start_server([])
    here, there = spawner.Pipe()
    process = spawner.Process(target=work, args=(there, 3600 if is_killed else 0))
    process.start()
    print(*here.recv(), flush=True)
    if is_killed:
        os.kill(os.getpid(), signal.SIGKILL)
    process.join()
"""


def start(tmp_path, *words):
    """Run the program below a temporary folder of 90 characters; all that print to a pipe end."""
    folder = tmp_path / ("x" * (89 - len(str(tmp_path))))
    folder.mkdir()
    assert len(str(folder)) == 90
    (tmp_path / "program.py").write_text(PROGRAM)
    ended = subprocess.run(
        [sys.executable, tmp_path / "program.py", *words],
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return folder, ended


def test_a_long_temporary_folder_is_used_but_for_sockets(tmp_path):
    folder, ended = start(tmp_path, "whole")
    assert ended.returncode == 0, ended.stderr
    server, temporary = ended.stdout.split()
    assert temporary == str(folder)
    assert not list(folder.iterdir())
    # The command does not return before its server has ended.
    with pytest.raises(ProcessLookupError):
        os.kill(int(server), 0)


def test_no_process_outlives_a_sweep_that_is_killed(tmp_path):
    """Whoever holds the pipe lets `sonosweep ... | tail` wait, and `start` run out of time."""
    _, ended = start(tmp_path, "killed")
    assert ended.returncode == -9
    assert ended.stdout, ended.stderr


LEAVING = """
import os, tempfile
from experiments.runner.server import start_server

def work():
    tempfile.mkdtemp()
    os._exit(0)

if __name__ == "__main__":
    process = start_server([]).Process(target=work)
    process.start()
    process.join()
    print(os.environ.get("TORCHINDUCTOR_CACHE_DIR"), process.exitcode)
"""


def test_what_a_stage_leaves_in_its_temporary_folder_goes_with_the_sweep(tmp_path):
    (tmp_path / "program.py").write_text(LEAVING)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        environment = {**os.environ, "TMPDIR": folder, "PYTHONPATH": str(Path.cwd())}
        environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
        words = [sys.executable, tmp_path / "program.py"]
        said = subprocess.check_output(words, env=environment, text=True, timeout=300)
        assert said == "None 0\n", "this process's own environment stays"
        assert not list(Path(folder).iterdir())


KILLED = """
import os, signal, sys, tempfile, time
from experiments.runner.server import share_temporary_folder, start_server

def work(end):
    share_temporary_folder()
    end.send(tempfile.gettempdir())
    time.sleep(3600 if sys.argv[1] == "stays" else 0)

if __name__ == "__main__":
    spawner = start_server([])
    here, there = spawner.Pipe()
    process = spawner.Process(target=work, args=(there,))
    process.start()
    print(here.recv(), process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_sweep_leaves_goes_at_the_next_start(tmp_path):
    """Once the last of its stages has ended, which may need it to write a checkpoint."""
    (tmp_path / "program.py").write_text(KILLED)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        environment = {**os.environ, "TMPDIR": folder, "PYTHONPATH": str(Path.cwd())}
        foreign = Path(folder) / "pymp-foreign"
        foreign.mkdir()

        def left(word):
            """The folders there, that of a killed sweep and the process id of its stage."""
            words = [sys.executable, tmp_path / "program.py", word]
            with (tmp_path / "said").open("w+") as said:
                subprocess.run(words, env=environment, stdout=said, timeout=300, check=False)
                said.seek(0)
                own, stage = said.read().split()
            return {*Path(folder).iterdir()}, Path(own), int(stage)

        found, stays, stage = left("stays")
        try:
            assert found == {foreign, stays}
            found, first, _ = left("ends")
            assert found == {foreign, stays, first}
            found, second, _ = left("ends")
            assert found == {foreign, stays, second}
        finally:
            os.kill(stage, signal.SIGKILL)


SHARING = """
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from experiments.runner import worker

def share(context, *, threads):
    # Lightning's answer is a broadcast, which waits for the first process.
    signal.signal(signal.SIGTERM, lambda *_: time.sleep(3600))
    Path("shares").write_text(str(os.getpid()))
    time.sleep(3600)

if os.fork():
    while not Path("shares").exists():
        time.sleep(0.05)
    os._exit(1)
worker._share = share
config, node = SimpleNamespace(extensions=[]), SimpleNamespace(stage="fit")
context = SimpleNamespace(config=config, node=node, run_dir=Path.cwd())
worker.run_node(context, worker.STAGES["fit"], 1, {}, False)
"""


def test_a_process_that_shares_a_training_ends_with_the_first_one(tmp_path):
    """Else it would keep its GPU's memory from the next attempt."""
    held, end = os.pipe()
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    words = [sys.executable, "-c", SHARING]
    subprocess.run(words, cwd=tmp_path, env=environment, pass_fds=[end], timeout=300, check=False)
    os.close(end)
    # It holds the other end as long as it lives.
    has_ended, _, _ = select.select([held], [], [], 60)
    os.close(held)
    if not has_ended:
        os.kill(int((tmp_path / "shares").read_text()), signal.SIGKILL)
    assert has_ended


INTERRUPTED = """
import os, signal
from experiments.runner.server import start_server

def work(end):
    end.send(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)

if __name__ == "__main__":
    asked = []
    signal.signal(signal.SIGINT, lambda *_: asked.append("asked"))
    spawner = start_server(["slow"])
    here, there = spawner.Pipe()
    process = spawner.Process(target=work, args=(there,))
    process.start()
    there.close()
    process.join()
    print(*asked, here.recv())
"""
SLOW = "import pathlib, time\npathlib.Path('imports').touch()\ntime.sleep({})\n"
GIVEN_UP = """
    from experiments.runner.server import start_first
    try:
        start_first(process)
    except (EOFError, ConnectionError):
        print(asked)
        raise SystemExit
"""


def interrupted(tmp_path, program, *, imports_s):
    """Exit code, prints and errors of a program that gets Ctrl-C while its server imports."""
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "slow.py").write_text(SLOW.format(imports_s))
    process = subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while not (tmp_path / "imports").exists() and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, said = process.communicate(timeout=60)
    return process.returncode, out, said


def test_a_terminals_ctrl_c_is_the_parents_alone_while_the_server_imports(tmp_path):
    assert interrupted(tmp_path, INTERRUPTED, imports_s=2) == (0, "asked True\n", "")


def test_a_stop_does_not_wait_for_the_imports(tmp_path):
    program = INTERRUPTED.replace("    process.start()", GIVEN_UP)
    code, out, said = interrupted(tmp_path, program, imports_s=600)
    assert (code, out, said) == (0, "['asked']\n", "")


def load(end):
    end_with_parent(0)
    end.send("loads")
    time.sleep(600)


def stage(end):
    multiprocessing.get_context("fork").Process(target=load, args=(end,)).start()
    time.sleep(600)


def test_a_loader_ends_with_the_process_that_it_loads_for():
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=stage, args=(there,))
    process.start()
    there.close()
    assert here.recv() == "loads"
    process.kill()
    assert here.poll(300)
    with pytest.raises(EOFError):
        here.recv()
