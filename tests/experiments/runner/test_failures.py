"""What is said of a stage that failed, and whether it is tried again."""

import errno
from collections import namedtuple
from pathlib import Path

import pytest

from datamodules.errors import ChangedError
from experiments.runner import failures
from experiments.runner.failures import kind_of, reason_of

FULL = "No space left on device"


def after(first, second, *, is_translated=False):
    """The second error, raised while the first one was handled."""
    try:
        try:
            raise first
        except type(first):
            if is_translated:
                raise second from first
            raise second  # noqa: B904 - as what is raised in a clean-up
    except type(second) as error:
        return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "out_of_memory",
        ),
        (MemoryError(), "out_of_memory"),
        # Where several stages share a GPU, its libraries are the first to find none left.
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            "out_of_memory",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "out_of_memory"),
        *(
            (RuntimeError(words), "out_of_memory")
            for words in (
                "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
                "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
                "GET was unable to find an engine to execute this computation",
            )
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"), "error"),
        (OSError(errno.ENOSPC, FULL), "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (RuntimeError("Error while serializing: I/O error: No space left on device"), "disk_full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/3"), "error"),
        (OSError(errno.EACCES, "Permission denied"), "error"),
        (ValueError("no"), "error"),
        (ChangedError("a.png: changed"), "data_changed"),
        (RuntimeError(f"unable to allocate shared memory(shm) for file </t>: {FULL}"), "error"),
        (after(MemoryError(), ValueError("in a clean-up")), "out_of_memory"),
    ],
)
def test_kinds_of_failure(tmp_path, error, kind):
    assert kind_of(error, run_dir=tmp_path) == kind


def test_the_first_error_of_a_chain_is_the_reason():
    lost = RuntimeError("Please call `iter(combined_loader)` first.")
    error = after(after(KeyError("a.png"), OSError("no such image")), lost)
    assert reason_of(error) == f"KeyError: 'a.png'; then RuntimeError: {lost}"
    assert reason_of(after(KeyError("a"), ValueError("no a"), is_translated=True)) == (
        "ValueError: no a"
    )
    assert reason_of(after(ValueError("no"), ValueError("no"))) == "ValueError: no"
    assert reason_of(ValueError()) == "ValueError()"


LOADER = """Caught RuntimeError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "worker.py", line 1, in loop
RuntimeError: unable to allocate shared memory(shm) for file </t>: No space left on device (28)
"""
BUS = "DataLoader worker (pid 1) is killed by signal: Bus error. It may be out of shared memory."
SMALL = "; /dev/shm holds 0.0625 MiB, too few for loader processes: enlarge it (containers: "


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError(LOADER), LOADER.strip().splitlines()[-1]),
        (after(OSError(errno.ENOSPC, FULL), ValueError("no")), f"{FULL}; then ValueError: no"),
        (RuntimeError(BUS), BUS),
    ],
)
def test_shared_memory_that_is_too_small_is_named(monkeypatch, tmp_path, error, words):
    usage = namedtuple("Usage", "total free")
    monkeypatch.setattr(failures, "SHARED_MEMORY", Path("/dev/shm"))
    monkeypatch.setattr(failures.shutil, "disk_usage", lambda _: usage(2**16, 2**15))
    reason = reason_of(error)
    assert words + SMALL + "--shm-size=2g), or set trainer.num_workers=0" in reason
    assert kind_of(error, run_dir=tmp_path) == "error"


def test_a_full_disk_is_not_taken_for_shared_memory(tmp_path):
    error = OSError(errno.ENOSPC, FULL, str(tmp_path / "results.csv"))
    assert kind_of(error, run_dir=tmp_path) == "disk_full"
    assert "/dev/shm" not in reason_of(error)
