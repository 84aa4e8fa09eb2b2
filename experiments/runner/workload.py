"""How much work a sweep still is, and how long it takes."""

import time
from collections.abc import Collection, Mapping

from experiments.plan.nodes import Node
from experiments.plan.stage_table import STAGES
from experiments.runner.costs import Cost, Costs, n_slots
from experiments.runner.gpus import device_kind, gpu_names
from experiments.runner.reference import known_gpu, reference_cost
from experiments.runner.schedule import Task, makespan_s
from experiments.runner.sweep import FINISHED, Sweep

START_S = 0.3
"""From the end of one stage to the begin of the next on the same slot: half the poll and a fork.
The median over 21 stages of a sweep on two cores was 0.34 s."""


def units_to_do(nodes: Mapping[str, Node], *, done: Collection[str]) -> dict[str, int]:
    """Count the units of each stage that is not done, in the plan's order.

    An image or view that several stages embed is counted for the first of them alone. Pairs are
    counted whole: what they will show is not known before they are made.
    """
    seen = {view for key in done for view in _views(nodes[key])}
    units = {}
    for key, node in nodes.items():
        if key not in done:
            views = _views(node)
            units[key] = len(views - seen) if views else node.steps
            seen |= views
    return units


def _views(node: Node) -> set[tuple[str, str, int]]:
    """What a stage embeds: strength, content hash and number of each view; empty for pairs and
    for another stage."""
    if not STAGES[node.stage].is_embedding or "images" not in node.content:
        return set()
    augment = node.content.get("augment", {"strength": "", "n_views": 1})
    # Views of two strengths differ; view 0 is the image itself under any.
    return {
        (augment["strength"] if view else "", pair_hash, view)
        for _, pair_hash in node.content["images"]
        for view in range(augment["n_views"])
    }


class Workload:
    """What a sweep still has to do, and how long it takes."""

    def __init__(self, sweep: Sweep, *, gpu: str | None = None) -> None:
        """`gpu` is one of `runner.reference`, None for what this machine has."""
        if gpu is None and device_kind(sweep.config) == "cuda":
            gpu = next(filter(None, map(known_gpu, gpu_names())), None)
        self._gpu, self._config = gpu, sweep.config
        self._costs = Costs(sweep.store.root, config=sweep.config)
        self._runs, self._store = sweep.runs, sweep.store.root / "store"
        self._slots = n_slots(sweep.config)
        # A stage's key is a hash over all of its images: the sweep's own keys are asked instead.
        self._learnt = {key for key, run in self._runs.items() if run.state == "reused"}
        self._traits = {key: self._costs.traits(run.node) for key, run in self._runs.items()}
        given_up = ("failed", "blocked")
        nodes = {k: run.node for k, run in self._runs.items() if run.state not in given_up}
        self.units = units_to_do(nodes, done=self._learnt)
        """Units of work by stage, of those to do."""

    def cost(self, key: str) -> Cost:
        """What a unit of a stage's work costs."""
        node = self._runs[key].node
        found = self._costs.of(node.stage, self._traits[key])
        if found.source != "first guess" or self._gpu is None:
            return found
        known = reference_cost(node, config=self._config, gpu=self._gpu)
        return found if known is None else Cost(known.unit_s, "table", known.fixed_s)

    def tasks(self) -> dict[str, Task]:
        """The stages that have not ended; what runs already comes first, for it has its slot."""
        for key, run in self._runs.items():
            if run.state == "done" and key not in self._learnt:
                self._learnt.add(key)
                self._costs.learn(self._store / key)
        left = [(key, run) for key, run in self._runs.items() if run.state not in FINISHED]
        tasks, now = {}, time.monotonic()
        for key, run in sorted(left, key=lambda each: each[1].state != "running"):
            # What was done and turned out damaged was not counted.
            units = self.units.setdefault(key, run.node.steps)
            cost = self.cost(key)
            seconds = START_S + cost.fixed_s + cost.seconds_per_unit * units
            if run.state == "running":
                seconds = max(seconds - (now - run.started), 0.05 * seconds)
            tasks[key] = Task(seconds=seconds, after=tuple(run.node.upstream.values()))
        return tasks

    def seconds_left(self) -> float:
        """Seconds until the last stage ends."""
        return makespan_s(self.tasks(), devices=self._slots)
