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


def makespan_s(tasks: Mapping[str, Task], *, devices: int) -> float:
    """Seconds that tasks take, started as the sweep does: a free device takes the first of them
    whose inputs are there.

    Args:
        tasks: Tasks by name; of two that could start, the one that comes first does.
        devices: Tasks that run at the same time.

    Returns:
        Seconds until the last one ends; 0 for no task. At most 2 - 1/devices times the shortest
        schedule (Graham 1969, doi 10.1137/0117039).

    Raises:
        ValueError: For no device, or tasks that wait for each other.
    """
    if devices < 1:
        raise ValueError(f"devices={devices}: at least 1")
    place = {name: number for number, name in enumerate(tasks)}
    waits = {name: {each for each in task.after if each in tasks} for name, task in tasks.items()}
    users: dict[str, list[str]] = {}
    for name, inputs in waits.items():
        for each in inputs:
            users.setdefault(each, []).append(name)
    ready = [(place[name], name) for name, inputs in waits.items() if not inputs]
    running: list[tuple[float, str]] = []
    now, started = 0.0, 0
    while ready or running:
        while ready and len(running) < devices:
            _, name = heapq.heappop(ready)
            heapq.heappush(running, (now + tasks[name].seconds, name))
            started += 1
        now = running[0][0]
        while running and running[0][0] <= now:
            _, ended = heapq.heappop(running)
            for user in users.get(ended, ()):
                waits[user].discard(ended)
                if not waits[user]:
                    heapq.heappush(ready, (place[user], user))
    if started < len(tasks):
        raise ValueError(f"{next(n for n in tasks if waits[n])}: waits for itself")
    return now
