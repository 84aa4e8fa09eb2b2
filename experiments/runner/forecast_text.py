"""A forecast as text of at most 80 columns."""

import dataclasses
import json
import textwrap
from collections.abc import Sequence

from rich.console import Console

from experiments.config.schema import ExperimentConfig
from experiments.runner.costs import RUNS_READ
from experiments.runner.forecast import Cell, Forecast, StageSum, Time, dry_run
from experiments.runner.progress import clock

WIDTH = 80
MOST_LINES = 14
"""Lines that a list shows before it says how many more there are."""
SHARED = (
    "generator",
    "synthesize",
    "import_pairs",
    "warp",
    "phantom",
    "resize",
    "gate",
    "subset",
    "embed",
    "fit",
)
"""Stages whose sharing is worth a line, in this order."""


def print_dry_run(config: ExperimentConfig, *, retry_failed: bool, as_json: bool) -> None:
    """Print what a sweep would do: text, or JSON for a program.

    Args:
        config: The recipe.
        retry_failed: Whether the sweep would try again what failed by an error of its own.
        as_json: Whether to print JSON.
    """
    found = dry_run(config, Console(stderr=True, highlight=False), retry_failed=retry_failed)
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=1, allow_nan=False))
    else:
        print(forecast_text(found), end="")


def forecast_text(found: Forecast) -> str:
    """Write a forecast for people; `dataclasses.asdict` gives it to programs."""
    parts = [
        _wrapped(
            f"{found.name}: {found.cohort}, {found.n_train} train, {found.n_val} validation and "
            f"{found.n_test} test images. A dry run: nothing is started or written."
        ),
        _trials(found),
        _stages(found),
        _failed(found),
        _shared(found),
        _time(found),
        _disk(found),
    ]
    return "\n".join("\n".join(part) + "\n" for part in parts if part)


def _wrapped(text: str, *, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _trials(found: Forecast) -> list[str]:
    if not found.cells:
        return []
    lines = [
        f"{_count(found.trials, 'trial')}, {found.trials_done} done"
        + (f"; {_count(found.controls, 'control')}" if found.controls else "")
    ]
    amounts = list({cell.n_real: cell for cell in found.cells}.values())
    names = list(dict.fromkeys(cell.condition for cell in found.cells))
    cells = {(cell.condition, cell.n_real): cell for cell in found.cells}
    first = max(len(name) for name in ("images", *names)) + 2
    per_block = max(1, (WIDTH - first) // 6)
    for start in range(0, len(amounts), per_block):
        block = amounts[start : start + per_block]
        lines.append("images".ljust(first) + "".join(f"{cell.n_real:6}" for cell in block))
        for name in names:
            row = [cells.get((name, cell.n_real)) for cell in block]
            lines.append(
                name.ljust(first) + "".join(f"{cell.trials if cell else 0:6}" for cell in row)
            )
    alike: dict[str, list[str]] = {}
    for name in names:
        axes = dict.fromkeys(_axes(cell) for cell in found.cells if cell.condition == name)
        alike.setdefault(" or ".join(axes), []).append(name)
    for axes, conditions in alike.items():
        who = "each number" if len(alike) == 1 else ", ".join(conditions)
        lines += _wrapped(f"{who}: {axes}", indent="  ")
    return lines


def _axes(cell: Cell) -> str:
    parts = [_count(cell.supports, "support"), _count(cell.seeds, "seed")]
    if cell.generator_seeds > 1:
        parts.append(_count(cell.generator_seeds, "generator seed"))
    if cell.folds > 1:
        parts.append(_count(cell.folds, "fold"))
    return " x ".join(parts)


def _stages(found: Forecast) -> list[str]:
    total, done = (sum(getattr(s, name) for s in found.stages) for name in ("total", "done"))
    left = sum(stage.to_do for stage in found.stages)
    lines = [
        f"{_count(total, 'stage')}, {done} done, {left} to do",
        f"{'stage':14}{'all':>5}{'done':>6}{'to do':>7}{'units':>8}{'about':>10}  measured on",
    ]
    for each in found.stages:
        cost = f"{each.units:8}{clock(each.seconds):>10}  {_measured(each)}" if each.to_do else ""
        row = f"{each.stage:14}{each.total:5}{each.done:6}{each.to_do:7}"
        lines.append((row + cost).rstrip())
    if any(each.runs for each in found.stages):
        lines += _wrapped(
            f"Times are medians over at most {RUNS_READ} runs of this store, those nearest in "
            f"settings, machine and threads (here {found.threads} a stage)."
        )
    return lines


def _measured(stage: StageSum) -> str:
    if stage.match == "first guess":
        return (
            "no run: a first guess"
            if not stage.runs
            else f"{_count(stage.runs, 'run')}, partly a guess"
        )
    what = {
        "same": "",
        "other threads or device": ", other threads or device",
        "other machine": ", other machine",
        "other settings": ", other settings",
        "other settings and machine": ", all else differs",
    }[stage.match]
    return _count(stage.runs, "run") + what


def _failed(found: Forecast) -> list[str]:
    lines = []
    for is_retried, words in (
        (True, "failed before, tried again and counted as to do"),
        (False, "failed before, not tried again without --retry-failed"),
    ):
        failed = [each for each in found.failed if each.is_retried == is_retried]
        if failed:
            lines.append(f"{len(failed)} {words}:")
            shown = [_cut(f"  {each.label}: {each.reason}") for each in failed]
            lines += _listed(shown)
    if found.blocked:
        lines.append(f"{_count(found.blocked, 'stage')} left out, since they need one of those")
    return lines


def _shared(found: Forecast) -> list[str]:
    shown = []
    listed = [each for each in found.shared if each.stage in SHARED]
    for each in sorted(listed, key=lambda each: SHARED.index(each.stage)):
        state = (
            ""
            if not each.done
            else ", done"
            if each.done == each.stages
            else (f", {each.done} done")
        )
        times = f"{each.stages} x " if each.stages > 1 else ""
        label = textwrap.shorten(f"{times}{each.label}", WIDTH - 24, placeholder="...")
        shown.append(f"  {label}: {each.trials} trials{state}")
    return ["made once for several trials:", *_listed(shown)] if shown else []


def _time(found: Forecast) -> list[str]:
    if not any(stage.to_do for stage in found.stages):
        return ["nothing is left to do"]
    lines = [f"about {found.work_device_hours:.2f} device-hours of work"]
    lines.append(f"{'devices':>9}{'about':>12}{'in use':>9}{'booked device-hours':>21}")
    lines += [_time_row(each) for each in found.times]
    device = "a GPU or, on the CPU, a process"
    if found.devices_per_stage > 1:
        device += f"; a training takes {found.devices_per_stage}, other stages keep them waiting"
    lines += _wrapped(f"A device is what a stage was measured on: {device}.")
    if found.now.seconds is not None:
        lines += _wrapped(
            f"As the recipe is set, {_count(found.now.at_once, 'stage')} at once: about "
            f"{clock(found.now.seconds)}."
            + (" Waiting in the queue comes on top." if found.launcher == "slurm" else "")
        )
    kinds = list(dict.fromkeys(found.chain))
    lines += _wrapped(
        f"At most {_count(found.waves, 'wave')} (stages that follow one another). The longest "
        f"chain takes about {clock(found.chain_seconds)} on any number of devices: "
        + "; then ".join(kinds)
    )
    return lines


def _time_row(time: Time) -> str:
    if time.seconds is None:
        return f"{time.devices:9}{'too few for one training':>42}"
    share = "" if time.utilisation is None else f"{time.utilisation:.0%}"
    return f"{time.devices:9}{clock(time.seconds):>12}{share:>9}{time.booked_device_hours:21.2f}"


def _disk(found: Forecast) -> list[str]:
    if not any(stage.to_do for stage in found.stages):
        return []
    text = f"Disk: about {_size(found.bytes)} will be written"
    if found.bytes_unknown:
        known = f"{text}, and" if found.bytes else "Disk:"
        text = f"{known} an unknown amount by {', '.join(found.bytes_unknown)}"
    text += "; prepared images come on top"
    if found.bytes_free is not None:
        text += f". {_size(found.bytes_free)} are free"
    return _wrapped(text + ".")


def _size(n_bytes: float) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes / 2**10:.0f} KiB"


def _listed(lines: Sequence[str]) -> list[str]:
    more = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], *([f"  and {more} more"] if more > 0 else [])]


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
