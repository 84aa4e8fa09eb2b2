"""How much work a sweep still is, and how long it takes by list scheduling, as it is started."""

import heapq
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter

from experiments.plan.nodes import Node
from experiments.plan.stage_table import STAGES
from experiments.runner.costs import Cost, Costs, known_gpu, n_slots
from experiments.runner.gpus import device_kind, gpu_names
from experiments.runner.sweep import FINISHED, Sweep

START_S = 0.3
"""From the end of one stage to the begin of the next on the same slot: half the poll and a fork.
The median over 21 stages of a sweep on two cores was 0.34 s."""
ESTIMATE_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """A stage to run."""

    seconds: float
    """How long it takes, from 0 on."""
    after: tuple[str, ...] = ()
    """Tasks whose results it needs; one that is not in the schedule is there already."""


def makespan_s(tasks: Mapping[str, Task], *, devices: int) -> float:
    """Seconds that tasks take, started as the sweep does: a free device takes the first of them
    whose inputs are there.

    Args:
        tasks: Tasks by name; of two that could start, the one that comes first does.
        devices: Tasks that run at the same time, at least 1.

    Returns:
        Seconds until the last one ends; 0 for no task. At most 2 - 1/devices times the shortest
        schedule (Graham 1969, doi 10.1137/0117039).

    Raises:
        graphlib.CycleError: For tasks that wait for each other.
    """
    place = {name: number for number, name in enumerate(tasks)}
    graph = TopologicalSorter({k: set(task.after) & tasks.keys() for k, task in tasks.items()})
    graph.prepare()
    ready: list[tuple[int, str]] = []
    running: list[tuple[float, str]] = []
    now = 0.0
    while graph.is_active():
        for name in graph.get_ready():
            heapq.heappush(ready, (place[name], name))
        while ready and len(running) < devices:
            _, name = heapq.heappop(ready)
            heapq.heappush(running, (now + tasks[name].seconds, name))
        now = running[0][0]
        while running and running[0][0] <= now:
            graph.done(heapq.heappop(running)[1])
    return now


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
        """`gpu` is one of `costs.gpus`, None for what this machine has."""
        if gpu is None and device_kind(sweep.config) == "cuda":
            gpu = next(filter(None, map(known_gpu, gpu_names())), None)
        self._at_once, self._runs = n_slots(sweep.config), sweep.runs
        self._costs = Costs(sweep.store.root, config=sweep.config, gpu=gpu)
        self._known: dict[str, Cost] = {}
        # A stage's key is a hash over all of its images: the sweep's own keys are asked instead.
        self._learnt = {key for key, run in self._runs.items() if run.state == "reused"}
        given_up = ("failed", "blocked")
        nodes = {k: run.node for k, run in self._runs.items() if run.state not in given_up}
        self.units = units_to_do(nodes, done=self._learnt)
        """Units of work by stage, of those to do."""
        self._estimated_at, self._seconds = -ESTIMATE_EVERY_S, 0.0

    def cost(self, key: str) -> Cost:
        """What a unit of a stage's work costs."""
        if key not in self._known:
            self._known[key] = self._costs.of(self._runs[key].node)
        return self._known[key]

    def tasks(self) -> dict[str, Task]:
        """The stages that have not ended; what runs already comes first, for it has its slot."""
        for key, run in self._runs.items():
            if run.state == "done" and key not in self._learnt:
                self._learnt.add(key)
                self._costs.forget(run.node.stage)
                self._known.clear()
        left = [(key, run) for key, run in self._runs.items() if run.state not in FINISHED]
        tasks, now = {}, time.monotonic()
        for key, run in sorted(left, key=lambda each: each[1].state != "running"):
            # What was done and turned out damaged was not counted.
            units = self.units.setdefault(key, run.node.steps)
            cost = self.cost(key)
            seconds = START_S + cost.fixed_s + cost.seconds_per_unit * units
            if run.state == "running":
                seconds = max(seconds - (now - run.started), 0.05 * seconds)
                by_pace = run.seconds_left()
                if by_pace is not None and cost.source == "first guess":
                    seconds = by_pace
                elif by_pace is not None:
                    # Whatever comes after what it is at now is in the cost alone.
                    seconds = max(seconds, by_pace)
            tasks[key] = Task(seconds=seconds, after=tuple(run.node.upstream.values()))
        return tasks

    def seconds_left(self) -> float:
        """Seconds until the last stage ends, estimated anew at most once in ESTIMATE_EVERY_S."""
        now = time.monotonic()
        if now - self._estimated_at >= ESTIMATE_EVERY_S:
            self._estimated_at = now
            self._seconds = makespan_s(self.tasks(), devices=self._at_once)
        return self._seconds
