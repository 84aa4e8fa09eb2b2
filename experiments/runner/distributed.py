"""A stage over several devices: `python -m experiments.runner.distributed RUN_DIR THREADS PARTS`.

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

import yaml

from datamodules.storage import write_atomic
from experiments.config.recipe import load_config
from experiments.config.schema import resolved
from experiments.plan.grid import make_plan
from experiments.plan.stage_table import STAGES
from experiments.runner.server import use_short_sockets
from experiments.runner.worker import redirect_output, run_held, stop_with_parent
from experiments.stages.context import StageContext
from experiments.stages.data import load_data
from experiments.store.runs import RunStore

REQUEST = "request.yaml"


def write_request(context: StageContext) -> None:
    """Write the recipe into the run's directory, from which the command finds the stage again."""
    text = yaml.safe_dump(resolved(context.config), sort_keys=False)
    write_atomic(context.run_dir / REQUEST, text)


def context_of(run_dir: Path) -> StageContext:
    """The stage that is to be run in a directory.

    Raises:
        KeyError: The data are others than when it was asked for.
    """
    run_dir = run_dir.absolute()
    root = run_dir.parents[2]
    config = load_config(str(run_dir / REQUEST), [f"store.root={root}"])
    data = load_data(config)
    return StageContext(
        config=config,
        node=make_plan(config, data.view).nodes[f"{run_dir.parent.name}/{run_dir.name}"],
        store=RunStore(root),
        samples=data.samples,
        unlabelled=data.unlabelled,
        rows=data.rows,
        content=data.view.content,
        sweep=config.name,
    )


def main(arguments: list[str]) -> int:
    """Run the stage in this process; gives its exit code."""
    run_dir, threads, parts = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    redirect_output(run_dir / "log.txt")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop_with_parent()
    use_short_sockets()
    context = replace(context_of(run_dir), batch_parts=parts)
    each = max(1, threads // context.config.trainer.devices)
    # Lightning sets it for the processes that it starts.
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        return run_held(context, threads=each)
    import torch

    torch.set_num_threads(each)
    context.config.wandb.mode = "disabled"
    try:
        STAGES[context.node.stage].load()(context)
    except BaseException:
        traceback.print_exc()
    return 1


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: exit handlers may wait for a server, a thread or another process.
    os._exit(code)
