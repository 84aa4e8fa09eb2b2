"""What a sweep tries again, with how much memory, and when it stops. No stage is run."""

import pytest
from runner_parts import make_sweep, node, states

from experiments.runner.sweep import next_batch_parts, parts_within
from experiments.store.runs import read_failure


@pytest.mark.parametrize("retries", [0, 2])
def test_a_killed_stage_is_tried_again_but_not_for_ever(tmp_path, retries):
    sweep, fake, lines = make_sweep(
        tmp_path, [node("a")], lambda _: "killed", f"sweep.retries={retries}"
    )
    sweep.run(lambda: None)
    assert len(fake.started) == retries + 1
    assert states(sweep) == {"a": "failed"}
    assert len(lines) == retries
    assert all("continues from its checkpoint" in line for line in lines)


def test_a_stage_that_gets_further_before_each_kill_ends_in_the_end(tmp_path):
    """As under a time limit: five kills with one retry."""
    steps = iter(range(1, 6))

    def act(context):
        done = next(steps, None)
        if done is None:
            return "done"
        context.status().update("steps", done=done, total=6)
        return "killed"

    sweep, fake, _ = make_sweep(tmp_path, [node("a")], act, "sweep.retries=1")
    sweep.run(lambda: None)
    assert len(fake.started) == 6
    assert states(sweep) == {"a": "done"}


def test_an_error_is_not_tried_again(tmp_path):
    sweep, fake, _ = make_sweep(
        tmp_path, [node("a")], lambda _: ("error", "ValueError: no"), "sweep.retries=3"
    )
    sweep.run(lambda: None)
    assert len(fake.started) == 1
    assert sweep.runs[next(iter(sweep.runs))].reason == "ValueError: no"


@pytest.mark.parametrize(("enough", "state"), [(2, "done"), (8, "failed")])
def test_out_of_memory_halves_the_parts_until_each_item_is_alone(tmp_path, enough, state):
    seen = []

    def act(context):
        seen.append(context.batch_parts)
        return "done" if seen[-1] == enough else ("out_of_memory", "CUDA out of memory")

    (a,) = nodes = [node("a", batch_size=4)]
    sweep, _, lines = make_sweep(tmp_path, nodes, act)
    sweep.run(lambda: None)
    assert seen == ([1, 2] if state == "done" else [1, 2, 4])
    assert states(sweep) == {"a": state}
    assert lines == [f"a: out of memory; again, a batch in {n} parts" for n in seen[1:]]
    assert (read_failure(tmp_path / "store" / a.key) is None) == (state == "done")


def test_a_job_that_is_a_sweep_itself_has_tried_less_memory(tmp_path):
    sweep, fake, _ = make_sweep(
        tmp_path, [node("a")], lambda _: ("out_of_memory", "CUDA out of memory"), chains=True
    )
    sweep.run(lambda: None)
    assert len(fake.started) == 1
    assert states(sweep) == {"a": "failed"}


@pytest.mark.parametrize(
    ("current", "limit", "expected"),
    [(1, 4, 2), (2, 4, 4), (4, 4, None), (1, 1, None), (1, 6, 2), (2, 6, 6), (1, 9, 3), (1, 7, 7)],
)
def test_parts_divide_the_batch(current, limit, expected):
    assert next_batch_parts(current, limit=limit) == expected


@pytest.mark.parametrize(
    ("wanted", "limit", "expected"), [(1, 4, 1), (2, 4, 2), (3, 4, 2), (9, 4, 4), (5, 1, 1)]
)
def test_parts_asked_for_divide_the_batch(wanted, limit, expected):
    assert parts_within(wanted, limit=limit) == expected


def test_failures_in_a_row_stop_the_sweep_with_one_summary(tmp_path):
    nodes = [node(f"n{i}") for i in range(10)]
    sweep, fake, _ = make_sweep(
        tmp_path,
        nodes,
        lambda c: ("error", f"reason {int(c.node.label[1:]) % 2}"),
        "sweep.max_failures=3",
    )
    sweep.run(lambda: None)
    assert len(fake.started) == 3
    assert sweep.halted.startswith("3 stages failed in a row, so no more is started: reason 0")
    assert "(and 1 other reason); " in sweep.halted
    assert "--retry-failed" in sweep.halted
    assert sum(state == "waiting" for state in states(sweep).values()) == 7


def test_a_success_between_failures_keeps_the_sweep_going(tmp_path):
    nodes = [node(f"n{i}") for i in range(9)]
    sweep, fake, _ = make_sweep(
        tmp_path,
        nodes,
        lambda c: "done" if int(c.node.label[1:]) % 3 == 2 else ("error", "no"),
        "sweep.max_failures=3",
    )
    sweep.run(lambda: None)
    assert len(fake.started) == 9
    assert not sweep.halted
