"""A stage over several devices: `python -m experiments.distributed SWEEP_DIR KEY THREADS PARTS`.

The sweep starts this command instead of a forked process, because Lightning starts its own command
once more for every further device. The first process holds the run and keeps what is made; the
others only share the training and end with it.
"""

import os
import signal
import sys
import traceback
from dataclasses import replace
from pathlib import Path

from experiments.context import StageContext
from experiments.data import load_data
from experiments.plan import make_plan
from experiments.recipe import load_config
from experiments.store import RunStore
from experiments.worker import redirect_output, run_held, stop_with_parent


def context_of(sweep_dir: Path, key: str) -> StageContext:
    """Find a stage of a sweep again, from the recipe that the sweep wrote down."""
    config = load_config(str(sweep_dir / "config.yaml"), [f"store.root={sweep_dir.parent}"])
    data = load_data(config)
    return StageContext(
        config=config,
        node=make_plan(config, data.view).nodes[key],
        store=RunStore(sweep_dir.parent),
        samples=data.samples,
        rows=data.rows,
        content=data.view.content,
        sweep=config.name,
    )


def main(arguments: list[str]) -> int:
    """Run the stage in this process; gives its exit code."""
    sweep_dir, key, threads, parts = arguments
    is_first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    context = replace(context_of(Path(sweep_dir), key), shrink=int(parts))
    run_dir = context.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    redirect_output(run_dir / "log.txt")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop_with_parent()
    each = max(1, int(threads) // context.config.trainer.devices)
    if is_first:
        return run_held(context, threads=each)
    import torch

    from experiments.stages import STAGES

    torch.set_num_threads(each)
    context.config.wandb.mode = "disabled"
    try:
        STAGES[context.node.stage](context)
    except BaseException:
        traceback.print_exc()
    return 1


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: exit handlers may wait for a server, a thread or another process.
    os._exit(code)
