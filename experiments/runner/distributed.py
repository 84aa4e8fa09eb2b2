"""A stage over several devices: `python -m experiments.runner.distributed RUN_DIR THREADS`.

The sweep starts this command instead of a forked process, because Lightning starts its own command
once more for every further device. The first process holds the run and keeps what is made; the
others only share the training and end with it.
"""

import os
import pickle
import signal
import sys
import traceback
from pathlib import Path

from experiments.config.extensions import import_extensions
from experiments.plan.stage_table import STAGES
from experiments.runner.server import use_short_sockets
from experiments.runner.worker import redirect_output, run_held, stop_with_parent
from experiments.stages.context import StageContext

REQUEST = "request.pkl"


def write_request(context: StageContext) -> None:
    """Write a stage into its directory, where the processes of its devices find it."""
    (context.run_dir / REQUEST).write_bytes(pickle.dumps(context))


def main(arguments: list[str]) -> int:
    """Run the stage in this process; gives its exit code."""
    run_dir, threads = Path(arguments[0]), int(arguments[1])
    redirect_output(run_dir / "log.txt")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop_with_parent()
    use_short_sockets()
    context = pickle.loads((run_dir / REQUEST).read_bytes())
    import_extensions(context.config.extensions)
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
