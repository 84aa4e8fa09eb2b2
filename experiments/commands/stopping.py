"""How a command that writes a folder answers SIGTERM. Torch-free."""

import contextlib
import signal
from collections.abc import Iterator

STOPPED = 128 + signal.SIGTERM
"""Exit code of a command that was asked to stop, as a shell gives it."""


@contextlib.contextmanager
def ends_by_sigterm() -> Iterator[None]:
    """Have SIGTERM end a command as Ctrl-C does, so that temporary folders are removed.

    Not for sweeps and trials, which answer it themselves; a handler that is there stays.
    """
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(*_: object) -> None:
    # A second one would leave the clearing-up undone.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(STOPPED)
