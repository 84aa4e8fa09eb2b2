"""List scheduling: makespans computed by hand, and a second simulation."""

import random
from graphlib import CycleError

import pytest

from experiments.runner.workload import Task, makespan_s


def tasks(**given) -> dict[str, Task]:
    """Tasks from `name=(seconds, inputs)`."""
    return {
        name: Task(seconds=seconds, after=tuple(after)) for name, (seconds, after) in given.items()
    }


CHAIN = tasks(a=(1, ""), b=(2, "a"), c=(3, "b"))
FAN_OUT = tasks(a=(2, ""), b=(3, "a"), c=(3, "a"), d=(3, "a"), e=(1, "a"))
DIAMOND = tasks(a=(1, ""), b=(5, "a"), c=(2, "a"), d=(1, "bc"))
LAST_IS_LONG = tasks(a=(1, ""), b=(1, ""), c=(4, ""))


@pytest.mark.parametrize(
    ("given", "devices", "seconds"),
    [
        (CHAIN, 1, 6),
        (CHAIN, 2, 6),
        (CHAIN, 8, 6),
        (FAN_OUT, 1, 12),
        # After a: b and c together, then d and e together.
        (FAN_OUT, 2, 8),
        (FAN_OUT, 8, 5),
        (DIAMOND, 1, 9),
        (DIAMOND, 2, 7),
        (DIAMOND, 8, 7),
        # The sweep's order is kept: the long one begins at 1, although 0 would be better.
        (LAST_IS_LONG, 2, 5),
        (LAST_IS_LONG, 8, 4),
    ],
)
def test_makespans_by_hand(given, devices, seconds):
    assert makespan_s(given, devices=devices) == seconds


def test_what_could_start_goes_ahead_of_what_stands_first():
    # c waits for b, so d and then e start before it.
    given = tasks(b=(3, ""), c=(1, "b"), d=(1, ""), e=(9, ""))
    assert makespan_s(given, devices=2) == 10


def test_nothing_takes_no_time_and_neither_does_what_is_there():
    assert makespan_s({}, devices=3) == 0
    # Inputs that are not to be run are done; the same input may come under two roles.
    given = tasks(b=(0, ["done"]), c=(2, ["b", "b", "done"]))
    assert makespan_s(given, devices=1) == 2


def test_zero_tasks_of_any_number_pass_at_once():
    given = {f"t{k}": Task(seconds=0.0) for k in range(10)} | {"end": Task(seconds=1.0)}
    assert makespan_s(given, devices=1) == 1.0


def test_a_circle_is_refused():
    with pytest.raises(CycleError):
        makespan_s(tasks(a=(1, "b"), b=(1, "a")), devices=1)


def second_by_second(given: dict[str, Task], *, devices: int) -> int:
    """The same rule without events: whole seconds, one after the other."""
    left = {name: task.seconds for name, task in given.items()}
    running: set[str] = set()
    done: set[str] = set()
    now = 0
    while len(done) < len(given):
        for name, task in given.items():
            free = len(running) < devices
            if free and name not in running | done and set(task.after) & set(given) <= done:
                running.add(name)
        now += 1
        for name in sorted(running):
            left[name] -= 1
            if not left[name]:
                done.add(name)
        running -= done
    return now


def random_tasks(rng: random.Random, *, n: int) -> dict[str, Task]:
    names = [f"t{k}" for k in range(n)]
    return {
        name: Task(
            seconds=rng.randint(1, 6),
            after=tuple(each for each in names[:k] if rng.random() < 0.3),
        )
        for k, name in enumerate(names)
    }


def test_agrees_with_a_simulation_second_by_second():
    rng = random.Random(4)
    for _ in range(200):
        given = random_tasks(rng, n=rng.randint(1, 12))
        for devices in (1, 2, 3, 8):
            found = makespan_s(given, devices=devices)
            assert found == second_by_second(given, devices=devices), (given, devices)
