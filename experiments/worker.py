"""The life of one stage in a process of its own: lock, manifest, run, marker."""

import contextlib
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from experiments.config import resolved
from experiments.context import StageContext
from experiments.provenance import provenance
from experiments.store import hold, write_done, write_failed, write_started


def run_node(context: StageContext, threads: int) -> None:
    """Run a stage unless it is done, and exit with 0 if it is done afterwards.

    Everything that is printed goes to `log.txt` in the run's directory. A failure leaves
    `FAILED.json` with its reason; the parent reads markers, never the exit code alone.
    """
    # Inside: the parent imports this module, and must not import torch.
    from experiments.dashboards import finish

    run_dir = context.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    _redirect_output(run_dir / "log.txt")
    # Ctrl-C reaches the whole group; the parent answers it by a SIGTERM, which Lightning takes
    # between two steps and not in the middle of an update.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _stop_with_parent()
    with hold(run_dir):
        if context.store.is_done(context.node.stage, context.node.id):
            return
        code = _run_held(context, threads=threads)
        finish(exit_code=code)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: W&B's and torch's exit handlers may wait for a server or a thread.
    os._exit(code)


def _run_held(context: StageContext, *, threads: int) -> int:
    import torch

    from experiments.stages import STAGES
    from experiments.training import checkpoint_dir

    torch.set_num_threads(threads)
    run_dir, node = context.run_dir, context.node
    started, cpu_started = time.time(), time.process_time()
    write_started(
        run_dir,
        {
            "stage": node.stage,
            "id": node.id,
            "label": node.label,
            "content": node.content,
            "upstream": node.upstream,
            "config": resolved(context.config),
            "sweep": context.sweep,
            "started": started,
            "threads": threads,
            **provenance(),
        },
    )
    try:
        result = STAGES[node.stage](context)
    except BaseException as error:
        traceback.print_exc()
        if not isinstance(error, KeyboardInterrupt | SystemExit):
            write_failed(run_dir, f"{type(error).__name__}: {error}" if str(error) else repr(error))
        return 1
    # On Linux the unit is KiB. A forked process starts with what its parent had imported.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write_done(
        run_dir,
        {
            **result,
            "seconds": round(time.time() - started, 2),
            "cpu_seconds": round(time.process_time() - cpu_started, 2),
            "peak_memory_mib": round(peak, 1),
        },
    )
    # The weights are kept beside; what a done run would need to go on is not.
    shutil.rmtree(checkpoint_dir(run_dir), ignore_errors=True)
    return 0


def _redirect_output(path: Path) -> None:
    log = path.open("a", buffering=1)
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        with contextlib.suppress(ValueError, OSError):
            stream.flush()
        os.dup2(log.fileno(), descriptor)
    sys.stdout = sys.stderr = log


def _stop_with_parent() -> None:
    """End by SIGTERM, which leaves a checkpoint, when the sweep itself was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
