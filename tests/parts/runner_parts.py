"""What the tests of the runner share: jobs and a launcher that only pretend."""

from types import SimpleNamespace

from toy_recipe import TOY

from experiments.config.recipe import load_config
from experiments.plan.nodes import Node, Plan
from experiments.runner.launchers import End
from experiments.runner.sweep import Sweep
from experiments.store.runs import write_done, write_failed


class FakeJob:
    """Does what the test says when it is first looked at, and has ended at the second look."""

    def __init__(self, contexts, act):
        self.contexts, self.act = contexts, act
        self.end, self.is_over = None, False

    def ended(self):
        if self.end is None:
            self.end = self._act()
            return None
        self.is_over = True
        return self.end

    def _act(self):
        for context in self.contexts:
            context.run_dir.mkdir(parents=True, exist_ok=True)
            outcome = self.act(context)
            if outcome == "done":
                write_done(context.run_dir, {"seconds": 0, "peak_memory_mib": 0})
            elif outcome == "nothing written":
                return End("its process ended with 1", was_killed=False)
            elif outcome == "killed":
                return End("its process was killed by SIGKILL", was_killed=True)
            else:
                write_failed(context.run_dir, outcome[1], kind=outcome[0])
                return End("its process ended with 1", was_killed=False)
        # The markers tell, so nobody looks at it again.
        self.is_over = True
        return End("its process ended with 0", was_killed=False)


class FakeLauncher:
    """Room for `capacity` jobs, whose stages do what `act(context)` says."""

    poll_s = 0.0

    def __init__(self, act, *, capacity=1, chains=False):
        self.act, self.capacity, self.chains = act, capacity, chains
        self.started, self.jobs = [], []
        self.left = None

    def free(self):
        return self.capacity - sum(not job.is_over for job in self.jobs)

    def start(self, jobs):
        self.started += [[context.node.label for context in job] for job in jobs]
        started = [FakeJob(job, self.act) for job in jobs]
        self.jobs += started
        return started

    def keep_alone(self, job):
        return False

    def leave(self, jobs):
        self.left = list(jobs)
        return "two jobs are left" if jobs else ""


def node(label, *upstream, stage="fit", batch_size=4):
    inputs = {f"in{i}": each.key for i, each in enumerate(upstream)}
    batch = {"batch_size": batch_size}
    content = {"label": label, "segmenter": batch, "unet": batch}
    return Node(stage=stage, content=content, upstream=inputs, label=label)


def make_sweep(tmp_path, nodes, act, *overrides, **launcher):
    config = load_config(TOY, [f"store.root={tmp_path}", *overrides])
    data = SimpleNamespace(name="hc18", samples={}, unlabelled={}, rows={}, content={})
    plan = Plan(nodes={each.key: each for each in nodes}, trials=[])
    lines = []
    fake = FakeLauncher(act, **launcher)
    return Sweep(config, data=data, plan=plan, launcher=fake, say=lines.append), fake, lines


def states(sweep):
    return {run.node.label: run.state for run in sweep.runs.values()}
