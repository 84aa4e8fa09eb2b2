"""List scheduling: makespans computed by hand, a second simulation, and the best schedule."""

import itertools
import random

import pytest

from experiments.runner.schedule import Task, longest_chain, simulate, waves


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
    assert simulate(given, devices=devices).makespan_s == seconds


def test_starts_follow_the_order_of_the_plan():
    assert simulate(FAN_OUT, devices=2).starts == {"a": 0, "b": 2, "c": 2, "d": 5, "e": 5}
    # What could start first is not what stands first: c waits for b, d goes ahead.
    given = tasks(b=(3, ""), c=(1, "b"), d=(1, ""), e=(9, ""))
    assert simulate(given, devices=2).starts == {"b": 0, "d": 0, "e": 1, "c": 3}


def test_nothing_takes_no_time_and_neither_does_what_is_there():
    assert simulate({}, devices=3).makespan_s == 0
    assert longest_chain({}) == []
    assert waves({}) == 0
    # Inputs that are not to be run are done; the same input may come under two roles.
    given = tasks(b=(0, ["done"]), c=(2, ["b", "b", "done"]))
    assert simulate(given, devices=1).starts == {"b": 0, "c": 0}
    assert simulate(given, devices=1).makespan_s == 2


def test_zero_tasks_of_any_number_pass_at_once():
    given = {f"t{k}": Task(seconds=0.0) for k in range(10)} | {"end": Task(seconds=1.0)}
    assert simulate(given, devices=1).makespan_s == 1.0


def test_no_device_and_a_circle_are_refused():
    with pytest.raises(ValueError, match="devices=0"):
        simulate(CHAIN, devices=0)
    with pytest.raises(ValueError, match="a: waits for itself"):
        simulate(tasks(a=(1, "b"), b=(1, "a")), devices=1)


def test_longest_chain_and_waves():
    assert longest_chain(DIAMOND) == ["a", "b", "d"]
    assert waves(DIAMOND) == 3
    # The longest in seconds is not the one of most stages.
    given = tasks(long=(9, ""), a=(1, ""), b=(1, "a"), c=(1, "b"))
    assert longest_chain(given) == ["long"]
    assert waves(given) == 3


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


def best(given: dict[str, Task], *, devices: int) -> float:
    """The shortest schedule there is: each order in turn, each task as early as it fits."""
    shortest = float("inf")
    for order in itertools.permutations(given):
        ends: dict[str, float] = {}
        placed: list[tuple[float, float]] = []
        for name in order:
            if not set(given[name].after) <= set(ends):
                break
            earliest = max((ends[each] for each in given[name].after), default=0)
            seconds = given[name].seconds
            for start in sorted({earliest, *(end for _, end in placed if end > earliest)}):
                points = [start, *(s for s, _ in placed if start < s < start + seconds)]
                if all(sum(s <= p < e for s, e in placed) < devices for p in points):
                    break
            placed.append((start, start + seconds))
            ends[name] = start + seconds
        else:
            shortest = min(shortest, max(ends.values()))
    return shortest


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
            found = simulate(given, devices=devices).makespan_s
            assert found == second_by_second(given, devices=devices), (given, devices)


def test_lies_between_the_best_schedule_and_its_bound():
    rng = random.Random(7)
    longer = 0
    for _ in range(40):
        given = random_tasks(rng, n=6)
        for devices in (1, 2, 3):
            optimum = best(given, devices=devices)
            found = simulate(given, devices=devices).makespan_s
            work = sum(task.seconds for task in given.values())
            chain = sum(given[name].seconds for name in longest_chain(given))
            assert optimum >= max(chain, work / devices)
            assert optimum <= found <= (2 - 1 / devices) * optimum
            longer += found > optimum
    assert longer, "none of the plans was hard enough to tell the two apart"


def test_a_thousand_stages_are_cheap_enough_to_draw_with():
    import time

    given = random_tasks(random.Random(1), n=40)
    many = {
        f"{k}-{name}": Task(seconds=t.seconds, after=tuple(f"{k}-{each}" for each in t.after))
        for k in range(25)
        for name, t in given.items()
    }
    assert len(many) == 1000
    began = time.process_time()
    simulate(many, devices=8)
    assert time.process_time() - began < 0.5
