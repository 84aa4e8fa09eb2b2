"""How long stages take on so many devices: list scheduling, as the sweep starts them. Pure."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Task:
    """A stage to run."""

    seconds: float
    """How long it takes, from 0 on."""
    after: tuple[str, ...] = ()
    """Tasks whose results it needs; one that is not in the schedule is there already."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When each task starts."""

    starts: dict[str, float]
    """Seconds from the beginning, by task."""
    makespan_s: float
    """Seconds until the last one ends."""


def simulate(tasks: Mapping[str, Task], *, devices: int) -> Schedule:
    """Start tasks as the sweep does: a free device takes the first one whose inputs are there.

    Args:
        tasks: Tasks by name; of two that could start, the one that comes first does.
        devices: Tasks that run at the same time.

    Returns:
        The schedule; no task takes no time. It is at most 2 - 1/devices times as long as the best
        one (Graham 1969, doi 10.1137/0117039).

    Raises:
        ValueError: For no device, or tasks that wait for each other.
    """
    if devices < 1:
        raise ValueError(f"devices={devices}: at least 1")
    names = list(tasks)
    open_inputs: dict[str, int] = {}
    users: dict[str, list[int]] = {}
    for number, (name, task) in enumerate(tasks.items()):
        inputs = {each for each in task.after if each in tasks}
        open_inputs[name] = len(inputs)
        for each in inputs:
            users.setdefault(each, []).append(number)
    ready = [number for number, name in enumerate(names) if not open_inputs[name]]
    running: list[tuple[float, int]] = []
    starts: dict[str, float] = {}
    now = 0.0
    while ready or running:
        while ready and len(running) < devices:
            number = heapq.heappop(ready)
            starts[names[number]] = now
            heapq.heappush(running, (now + tasks[names[number]].seconds, number))
        now = running[0][0]
        while running and running[0][0] <= now:
            _, number = heapq.heappop(running)
            for user in users.get(names[number], ()):
                open_inputs[names[user]] -= 1
                if not open_inputs[names[user]]:
                    heapq.heappush(ready, user)
    if len(starts) < len(tasks):
        raise ValueError(f"{next(n for n in names if n not in starts)}: waits for itself")
    return Schedule(starts=starts, makespan_s=now)


def longest_chain(tasks: Mapping[str, Task]) -> list[str]:
    """The chain of tasks, each after the one before it, that takes the longest.

    Args:
        tasks: Tasks by name, each after its inputs.

    Returns:
        Their names; empty for no task. No number of devices is faster than their sum.
    """
    best: dict[str, tuple[float, str | None]] = {}
    for name, task in tasks.items():
        before = max(
            (each for each in task.after if each in tasks), key=lambda n: best[n][0], default=None
        )
        best[name] = (task.seconds + (best[before][0] if before is not None else 0.0), before)
    chain: list[str] = []
    name = max(best, key=lambda n: best[n][0], default=None)
    while name is not None:
        chain.append(name)
        name = best[name][1]
    return chain[::-1]


def waves(tasks: Mapping[str, Task]) -> int:
    """Most tasks that have to follow one another; 0 for none.

    Args:
        tasks: Tasks by name, each after its inputs.
    """
    depth: dict[str, int] = {}
    for name, task in tasks.items():
        depth[name] = 1 + max((depth[each] for each in task.after if each in tasks), default=0)
    return max(depth.values(), default=0)
