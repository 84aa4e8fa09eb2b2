"""How a command that writes a folder answers SIGTERM and SIGHUP. Torch-free."""

import contextlib
import signal
from collections.abc import Iterator

STOPPED = 128 + signal.SIGTERM
"""Exit code of a command that was asked to stop, as a shell gives it."""
SIGNALS = (signal.SIGTERM, signal.SIGHUP)
"""What asks a command to stop; the second comes where its terminal is closed."""


@contextlib.contextmanager
def ends_by_signal() -> Iterator[None]:
    """Have these signals end a command as Ctrl-C does, so that temporary folders are removed.

    Not for sweeps and trials, which answer SIGTERM themselves; a handler that is there stays, so
    that `nohup` works.
    """
    ours = [each for each in SIGNALS if signal.getsignal(each) is signal.SIG_DFL]
    for each in ours:
        signal.signal(each, _stop)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)


def _stop(number: int, *_: object) -> None:
    # A second one would leave the clearing-up undone.
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)
