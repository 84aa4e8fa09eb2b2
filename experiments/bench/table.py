"""`bench.json` as markdown: ratios with their targets first, then every time and value."""

from collections.abc import Sequence
from typing import Any

from experiments.bench.measure import Result, Timing, Value

UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def bench_table(content: dict[str, Any], results: Sequence[Result]) -> str:
    """Write results as markdown.

    Args:
        content: What `bench.json` holds; its machine and settings are named.
        results: Its results.

    Returns:
        Tables that end with a line break; no number is in them that is not in `results`.
    """
    machine, settings = content["machine"], content["settings"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gib']} GiB, device {machine.get('gpu') or machine['device']}; torch "
        f"{content['versions']['torch']}; {settings['images']}; {content['date'][:10]}, "
        f"commit {str(content['code']['git_sha'])[:10]}.",
    ]
    if settings["quick"]:
        lines += ["", "**`--quick`: smallest networks and sizes; these numbers mean nothing.**"]
    lines += _ratios(results)
    for result in results:
        lines += ["", f"#### {result.name}"]
        lines += _timings(result.timings)
        lines += _values(result.values)
        lines += [line for note in result.notes for line in ("", note)]
    return "\n".join(lines) + "\n"


def seconds_text(seconds: float) -> str:
    """Seconds in the unit that suits them, three digits: `1.23 s`, `45.6 ms`, `2.5 h`."""
    if seconds >= 5400:
        return f"{seconds / 3600:.3g} h"
    for size, unit in UNITS:
        if seconds >= size:
            return f"{_digits(seconds / size)} {unit}"
    return f"{_digits(seconds * 1e6)} us"


def reached_text(reached: bool | None) -> str:
    """`reached`, `not reached`, or nothing where there is no target."""
    return {True: "reached", False: "not reached", None: ""}[reached]


def _ratios(results: Sequence[Result]) -> list[str]:
    rows = [
        (
            result.name,
            ratio.label,
            seconds_text(ratio.published_s),
            seconds_text(ratio.ours_s),
            f"{ratio.ratio:.3g}x",
            "" if ratio.at_least is None else f"{ratio.at_least:g}x",
            reached_text(ratio.reached),
            ratio.how,
        )
        for result in results
        for ratio in result.ratios
    ]
    head = ("Benchmark", "What", "Published way", "Ours", "Ratio", "Target", "", "How")
    return _table(head, rows)


def _timings(timings: Sequence[Timing]) -> list[str]:
    rows = [
        (
            timing.label,
            f"{seconds_text(timing.per_unit_s)} / {timing.unit}",
            f"{seconds_text(timing.spread_s[0])} - {seconds_text(timing.spread_s[1])}",
            "" if timing.cpu_per_unit_s is None else seconds_text(timing.cpu_per_unit_s),
            str(len(timing.wall_s)),
        )
        for timing in timings
    ]
    return _table(("What", "Median", "Fastest - slowest", "Processor time", "Repeats"), rows)


def _values(values: Sequence[Value]) -> list[str]:
    rows = [
        (
            value.label,
            f"{_digits(value.value)} {value.unit}",
            "" if value.at_most is None else f"at most {value.at_most:g} {value.unit}",
            reached_text(value.reached),
            f"{value.how}: {value.formula}" if value.formula else value.how,
        )
        for value in values
    ]
    return _table(("What", "Value", "Target", "", "How"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    lines = ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    # A bar would end the cell.
    return lines + [
        "| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows
    ]


def _digits(value: float) -> str:
    """Three digits, whole numbers from 100 on, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
