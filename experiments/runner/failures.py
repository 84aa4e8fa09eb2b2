"""Why a stage failed: one line, and whether another attempt may succeed. Torch-free."""

import errno
import shutil
from pathlib import Path

from datamodules.errors import ChangedError
from experiments.store.runs import FailureKind

SHARED_MEMORY = Path("/dev/shm")
_NO_MEMORY = (
    *("out of memory", "can't allocate", "_status_alloc_failed"),
    # Since cuDNN 9; and what cuBLAS says where not even its handle finds room.
    *("_allocation_failed", "cublas_status_not_initialized"),
    # torch passes over each of a convolution's algorithms that finds no memory to work in.
    "unable to find an engine to execute this computation",
)
"""What an error says, in small letters, where memory ran out: torch's allocators, and cuBLAS, cuDNN
and others, which take a GPU's memory by themselves."""


def reason_of(error: BaseException) -> str:
    """The first error of a chain, then the last: what is raised while another one is handled, such
    as by a clean-up, is seldom the cause. What was raised from another says it in better words."""
    first, *_ = chain = _chain(error)
    reason = _words(first)
    if len(chain) > 1 and _words(error) != reason:
        reason += f"; then {_words(error)}"
    if any(map(_lacks_shared_memory, chain)):
        reason += (
            f"; {SHARED_MEMORY} holds {_shared_mib():.3g} MiB, too few for loader processes: "
            "enlarge it (containers: --shm-size=2g), or set trainer.num_workers=0"
        )
    return reason


def kind_of(error: BaseException, *, run_dir: Path) -> FailureKind:
    """Tell failures after which another attempt may succeed from those that will come again."""
    kinds = (_kind_of_one(each, run_dir=run_dir) for each in _chain(error))
    return next((kind for kind in kinds if kind != "error"), "error")


def _chain(error: BaseException) -> list[BaseException]:
    """The errors that led to one without being named as its cause, the first one first."""
    chain = [error]
    while (
        (before := chain[-1].__context__) is not None
        and chain[-1].__cause__ is None
        and not chain[-1].__suppress_context__
    ):
        chain.append(before)
    return chain[::-1]


def _words(error: BaseException) -> str:
    text = str(error)
    if "\nOriginal Traceback" in text:
        # From a loader's process, with its trace; the last line is the error.
        return text.strip().splitlines()[-1]
    return f"{type(error).__name__}: {text}" if text else repr(error)


def _kind_of_one(error: BaseException, *, run_dir: Path) -> FailureKind:
    words = str(error).lower()
    if isinstance(error, ChangedError):
        return "data_changed"
    if _lacks_shared_memory(error):
        return "error"
    if isinstance(error, MemoryError) or any(each in words for each in _NO_MEMORY):
        return "out_of_memory"
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    # Writers in C++ and Rust give words of their own.
    is_full |= "no space left" in words
    is_full |= "pytorchstreamwriter failed" in words and shutil.disk_usage(run_dir).free < 2**26
    return "disk_full" if is_full else "error"


def _lacks_shared_memory(error: BaseException) -> bool:
    """Whether the memory that processes share is full, which calls itself a full device too."""
    words = str(error).lower()
    if "shared memory" in words and ("no space left" in words or "dataloader" in words):
        return True
    # A semaphore lies there too, and its error names no file.
    is_unnamed = isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename
    return is_unnamed and SHARED_MEMORY.is_dir() and _shared_mib() < 1


def _shared_mib() -> float:
    """All of the memory that processes can share, taken or free."""
    return shutil.disk_usage(SHARED_MEMORY).total / 2**20
