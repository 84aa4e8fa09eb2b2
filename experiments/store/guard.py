"""Who uses a store right now, and which version made it. Nothing here waits or runs a stage."""

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from datamodules.storage import write_json
from experiments.store.layout import STORE_LAYOUT, VERSION_NAME, check_version
from experiments.store.runs import hold

LOCK_NAME = ".lock"
TRIALS_LOCK = ".trials"
"""In the store: trials without a sweep's folder run on it."""


def claim_store(root: Path) -> None:
    """`check_version`, and give a store that has no version yet its version and mark, which the
    first of several processes draws."""
    check_version(root)
    path = root / VERSION_NAME
    if not path.exists():
        with hold(path.parent):
            if not path.exists():
                write_json(path, {"layout": STORE_LAYOUT, "mark": secrets.token_hex(2)})


@contextmanager
def use_sweep(folder: Path, *, lock: str = LOCK_NAME) -> Iterator[None]:
    """Say that a sweep is in use, by one of several maybe, until the block or process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / lock).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def use_store(root: Path) -> AbstractContextManager[None]:
    """The same of a store that trials without a sweep's folder run on."""
    return use_sweep(root / "store", lock=TRIALS_LOCK)


def is_used(folder: Path, *, lock: str = LOCK_NAME) -> bool:
    """Whether `use_sweep` holds in some process; also where that cannot be found out."""
    path = folder / lock
    if _takes(path, fcntl.LOCK_EX):
        return False
    # Another one may have been asking just then, which takes microseconds.
    time.sleep(0.02)
    return not _takes(path, fcntl.LOCK_EX)


def is_held(run_dir: Path) -> bool:
    """Whether a process holds a run directory; also where that cannot be found out."""
    return not _takes(run_dir / LOCK_NAME, fcntl.LOCK_SH)


def _takes(path: Path, kind: int) -> bool:
    """Whether a lock is free; it is released at once."""
    # A lock over a network needs a file that is open for writing; another user's may not be.
    mode = os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY
    try:
        descriptor = os.open(path, mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
