"""The life of one stage in a process of its own: lock, manifest, run, marker."""

import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

from datamodules.errors import ChangedError
from experiments.config.extensions import import_extensions
from experiments.config.schema import resolved
from experiments.plan.stage_table import STAGES, StageRow
from experiments.runner.failures import kind_of, reason_of
from experiments.runner.server import share_temporary_folder
from experiments.stages.context import StageContext
from experiments.stages.planned import require_as_planned
from experiments.store import runs
from experiments.store.fitted import described
from experiments.store.provenance import code_name, provenance, used_gpu
from lightning_modules.errors import NonFiniteLossError

STOPPED = 128 + signal.SIGTERM
"""Exit code of a stage that was asked to stop, as a shell gives it."""


def run_node(
    context: StageContext,
    row: StageRow,
    threads: int,
    environment: Mapping[str, str],
    is_first: bool = True,
) -> None:
    """Run a stage in a process made for it, with variables of its own; the process ends here. One
    that is not the first of its stage only shares in the training.

    All that is printed goes to `log.txt`. A failure leaves `FAILED.json`: the parent reads markers,
    never the exit code alone. A stage's row from outside is in the parent's table alone, and so is
    handed over.
    """
    # Before torch first looks for a GPU.
    os.environ.update(environment)
    import_extensions(context.config.extensions)
    STAGES[context.node.stage] = row
    share_temporary_folder()
    context.run_dir.mkdir(parents=True, exist_ok=True)
    redirect_output(context.run_dir / "log.txt")
    # Ctrl-C reaches the whole group; the parent answers it by a SIGTERM, which Lightning takes
    # between two steps and not in the middle of an update.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One that shares has nothing to write, and would wait in Lightning's answer to a SIGTERM, a
    # broadcast, for the first process, which is gone: with its GPU's memory, which a retry needs.
    stop_with_parent(signal.SIGTERM if is_first else signal.SIGKILL)
    code = (run_held if is_first else _share)(context, threads=threads)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: W&B's and torch's exit handlers may wait for a server or a thread.
    os._exit(code)


def run_held(context: StageContext, *, threads: int) -> int:
    """Run a stage alone, unless it is done; 0 where it is done afterwards, else an exit code."""
    # Inside: the parent imports this module, and must not import torch.
    from experiments.stages.wandb_run import finish

    waiting = context.status()
    with runs.hold(
        context.run_dir, on_wait=lambda: waiting.update("held by another sweep", done=0, total=0)
    ):
        if runs.is_done(context.run_dir):
            return 0
        code = _run(context, threads=threads)
        finish(exit_code=code)
    return code


def _share(context: StageContext, *, threads: int) -> int:
    """Train beside the first process, which keeps what is made; a fit ends the others itself."""
    import torch

    torch.set_num_threads(threads)
    context.config.wandb.mode = "disabled"
    try:
        STAGES[context.node.stage].load()(context)
    except BaseException as error:
        traceback.print_exc()
        # Lightning kills the first process for it, which then says nothing. Other errors here may
        # be of its own end.
        kind = kind_of(error, run_dir=context.run_dir)
        if kind == "out_of_memory" or isinstance(error, NonFiniteLossError):
            runs.write_failed(context.run_dir, reason_of(error), kind=kind)
    return 1


def _run(context: StageContext, *, threads: int) -> int:
    import torch

    from experiments.stages.device import device_of
    from experiments.stages.training import checkpoint_dir

    torch.set_num_threads(threads)
    run_dir, node = context.run_dir, context.node
    started, cpu_started = time.time(), time.process_time()
    try:
        manifest = {
            **{key: getattr(node, key) for key in ("stage", "id", "label", "content", "upstream")},
            "config": resolved(context.config),
            **({"segmenter": described(context.segmenter)} if node.segmenter else {}),
            "sweep": context.config.name,
            "started": started,
            "threads": threads,
            "devices": context.config.trainer.devices,
            "device": device_of(context.config).type,
            "batch_parts": context.batch_parts,
        }
        facts = provenance(context.code)
        if "code_on_disk" in facts:
            print(
                f"the code has changed since the sweep began: this stage runs {code_name(facts)}, "
                f"on the disk is {code_name(facts['code_on_disk'])}"
            )
        if not STAGES[node.stage].is_training:
            # An earlier attempt may have left pairs that this one does not make.
            runs.discard_results(run_dir)
        runs.write_started(run_dir, {**manifest, **facts})
        result = STAGES[node.stage].load()(context)
        require_as_planned(context)
        # On Linux the unit is KiB. A forked process starts with what its parent had imported.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        used = {
            "seconds": round(time.time() - started, 2),
            "cpu_seconds": round(time.process_time() - cpu_started, 2),
            "peak_memory_mib": round(peak, 1),
        }
        runs.write_done(run_dir, {**result, **used, **used_gpu()})
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt | SystemExit | InterruptedError):
            return STOPPED
        try:
            if isinstance(error, ChangedError):
                runs.discard_results(run_dir)
            runs.write_failed(run_dir, reason_of(error), kind=kind_of(error, run_dir=run_dir))
        except OSError:
            # No room for the few bytes either: the sweep sees that by itself.
            traceback.print_exc()
        return 1
    # The weights are kept beside; what a done run would need to continue is not.
    shutil.rmtree(checkpoint_dir(run_dir), ignore_errors=True)
    return 0


def redirect_output(path: Path) -> None:
    """Append all that the process prints, C code included, to a file."""
    log = path.open("a", buffering=1)
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        with contextlib.suppress(ValueError, OSError):
            stream.flush()
        os.dup2(log.fileno(), descriptor)
    sys.stdout = sys.stderr = log


def stop_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """End by a signal, SIGTERM leaves a checkpoint, when the parent has ended or was killed."""
    # Of a forked process the system's parent is the server that forked it, which lives on with it.
    sweep, parent = multiprocessing.parent_process(), os.getppid()

    def watch() -> None:
        if sweep is not None:
            sweep.join()
        while sweep is None and os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()
