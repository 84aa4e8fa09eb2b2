"""A stage over several devices: `python -m experiments.runner.distributed RUN_DIR THREADS`.

The sweep starts this command instead of a forked process, because Lightning starts its own command
once more for every further device. The first process holds the run and keeps what is made; the
others only share the training and end with it.
"""

import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path

from experiments.plan.stage_table import STAGES
from experiments.runner.server import use_short_sockets
from experiments.runner.worker import run_node
from experiments.stages.context import StageContext
from experiments.store.runs import REQUEST_NAME


def write_request(context: StageContext) -> None:
    """Write a stage into its directory, where the processes of its devices find it."""
    request = context, STAGES[context.node.stage]
    (context.run_dir / REQUEST_NAME).write_bytes(pickle.dumps(request))


def main(arguments: list[str]) -> None:
    """Run the stage, or share in it, and end the process."""
    run_dir, threads = Path(arguments[0]), int(arguments[1])
    use_short_sockets()
    context, row = pickle.loads((run_dir / REQUEST_NAME).read_bytes())
    # Nothing is forked here: what runs was imported just now.
    context = replace(context, code=None)
    each = max(1, threads // context.config.trainer.devices)
    # Lightning sets it for the processes that it starts.
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    run_node(context, row, each, {}, is_first)


if __name__ == "__main__":
    main(sys.argv[1:])
