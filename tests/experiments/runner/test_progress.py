"""The live table and its plain lines, whatever the terminal."""

import io
import time
from types import SimpleNamespace

import pytest
from rich.console import Console
from toy_recipe import TOY

from experiments.config.recipe import load_config
from experiments.plan.nodes import Node
from experiments.runner.progress import LiveProgress
from experiments.runner.sweep import NodeRun
from experiments.runner.workload import Workload
from experiments.store.runs import RunStore, Status

LABEL = "score synthetic_same_budget_strong, 20 images, seed 0 on hc18, whole_image"


def run(number: int, state: str, **fields) -> NodeRun:
    content = {"test": [number], "evaluation": {"prompt": "whole_image"}}
    node = Node(stage="score", content=content, label=f"{LABEL} {number}", steps=10)
    return NodeRun(node=node, state=state, started=time.monotonic(), **fields)


@pytest.fixture
def sweep(tmp_path):
    """Fifty stages in every state, the running ones far down."""
    runs = [run(n, "done", seconds=61) for n in range(20)]
    runs += [run(20, "failed", reason="ValueError: a reason of many words, " * 9)]
    runs += [run(n, "waiting") for n in range(21, 40)]
    runs += [run(n, "running", what="test images", done=3, total=10) for n in (40, 41)]
    runs += [run(n, "waiting") for n in range(42, 50)]
    by_key = {each.node.key: each for each in runs}
    config = load_config(TOY, ["name=night", "trainer.accelerator=cpu"])
    store = RunStore(tmp_path)
    return SimpleNamespace(runs=by_key, store=store, config=config, pending=True)


def screen(sweep, *, width: int, height: int) -> list[str]:
    console = Console(
        width=width, height=height, force_terminal=True, color_system=None, file=io.StringIO()
    )
    drawn = LiveProgress(sweep, console)._draw()
    with console.capture() as captured:
        console.print(drawn)
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [40, 58, 80, 160])
@pytest.mark.parametrize("height", [12, 30, 70])
def test_the_table_fits_and_shows_what_runs_and_what_failed(sweep, width, height):
    lines = screen(sweep, width=width, height=height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "21 of 50 stages" in text.replace("\n", " ")
    assert text.count("▶") == 2
    assert text.count("test images 3/10"[: max(18, width // 3) - 1]) == 2
    assert text.count("✗") == 1
    assert ("━" in text) == (width >= 80)
    hidden = 50 - sum(line[:1] in "✓▶✗·" for line in lines if line)
    assert (f"and {hidden} more stages" in text) == (hidden > 0)


def test_one_stage_more_is_no_plural(sweep):
    for key in list(sweep.runs)[4:]:
        del sweep.runs[key]
    assert "and 1 more stage" in [line.strip() for line in screen(sweep, width=80, height=7)]


def test_a_log_without_a_terminal_has_whole_lines(sweep):
    console = Console(width=40, file=io.StringIO(), force_terminal=False)
    with LiveProgress(sweep, console) as progress:
        progress.update()
        progress.update()
    lines = console.file.getvalue().splitlines()
    running = [line for line in lines if "] running" in line]
    # A state is printed once; how far the running ones are follows at long intervals.
    assert len(running) == 4
    assert f"{LABEL} 40: test images 3/10, 0:0" in running[0]
    assert sum("] done" in line for line in lines) == 20
    assert sum("] failed" in line for line in lines) == 1
    assert not any("waiting" in line for line in lines)
    assert "\x1b" not in console.file.getvalue()


def test_a_running_stage_tells_its_own_pace(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stage = run(0, "running")

    def hear(what: str, done: int, *, after: float) -> float | None:
        now[0] += after
        stage.hear(Status(what, done, 100, 0.0))
        return stage.seconds_left()

    # What it had done before it was resumed, and the first unit, tell no pace.
    assert hear("steps", 50, after=1) is None
    assert hear("steps", 0, after=40) is None
    assert hear("steps", 1, after=60) is None
    assert hear("steps", 2, after=15) is None
    assert hear("steps", 3, after=15) == pytest.approx(15 * 97)
    assert hear("steps", 11, after=120) == pytest.approx(15 * 89)
    # Another part of it has another pace.
    assert hear("images", 1, after=5) is None
    assert hear("images", 11, after=10) == pytest.approx(89)


def test_what_is_left_follows_the_pace_of_what_runs(sweep, monkeypatch):
    def seconds_left(pace: float | None) -> float:
        monkeypatch.setattr(NodeRun, "seconds_left", lambda self: pace)
        return Workload(sweep).seconds_left()

    # One after the other, with the two that run.
    sweep.config.sweep.workers = 1
    guessed, slow, fast = seconds_left(None), seconds_left(600.0), seconds_left(0.0)
    assert slow == pytest.approx(fast + 1200)
    assert fast < guessed < slow
