"""`bench.json` as markdown: ratios with their targets first, then every time and value."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.store.provenance import code_words

UNITS = ((5400.0, 3600.0, "h"), (1.0, 1.0, "s"), (1e-3, 1e-3, "ms"), (0.0, 1e-6, "us"))
"""From how many seconds on a unit is used, its seconds, and its name."""
REACHED = {True: "reached", False: "not reached", None: ""}
Entry = Mapping[str, Any]
Columns = Mapping[str, Callable[[Entry], str]]


def seconds_text(seconds: float | None) -> str:
    """Seconds in the unit that suits them, three digits: `1.23 s`, `45.6 ms`, `2.5 h`."""
    if seconds is None:
        return ""
    size, unit = next((size, unit) for least, size, unit in UNITS if seconds >= least)
    return f"{_digits(seconds / size)} {unit}"


def _digits(value: float) -> str:
    """Three digits, whole numbers from 100 on, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


RATIOS: Columns = {
    "Benchmark": lambda e: e["benchmark"],
    "What": lambda e: e["label"],
    "Published way": lambda e: seconds_text(e["published_s"]),
    "Ours": lambda e: seconds_text(e["ours_s"]),
    "Ratio": lambda e: f"{e['ratio']:.3g}x",
    "Target": lambda e: "" if e["at_least"] is None else f"{e['at_least']:g}x",
    "": lambda e: REACHED[e["reached"]],
    "How": lambda e: e["how"],
}
TIMINGS: Columns = {
    "What": lambda e: e["label"],
    "Median": lambda e: f"{seconds_text(e['per_unit_s'])} / {e['unit']}",
    "Fastest - slowest": lambda e: " - ".join(
        seconds_text(e[each]) for each in ("fastest_s", "slowest_s")
    ),
    "Processor time": lambda e: seconds_text(e["cpu_per_unit_s"]),
    "Repeats": lambda e: str(len(e["wall_s"])),
}
VALUES: Columns = {
    "What": lambda e: e["label"],
    "Value": lambda e: f"{_digits(e['value'])} {e['unit']}",
    "Target": lambda e: "" if e["at_most"] is None else f"at most {e['at_most']:g} {e['unit']}",
    "": lambda e: REACHED[e["reached"]],
    "How": lambda e: ": ".join(filter(None, (e["how"], e["formula"]))),
}


def bench_table(content: Mapping[str, Any]) -> str:
    """What `bench.json` holds as tables that end with a line break; no number is added to it."""
    machine, settings, results = content["machine"], content["settings"], content["results"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gib']} GiB, device {machine.get('gpu') or machine['device']}; torch "
        f"{content['versions']['torch']}; {settings['images']}; {content['date'][:10]}, "
        f"{code_words(content['code'])}.",
    ]
    if settings["quick"]:
        lines += ["", "**`--quick`: smallest networks and sizes; these numbers mean nothing.**"]
    ratios = [r | {"benchmark": name} for name, each in results.items() for r in each["ratios"]]
    lines += _table(RATIOS, ratios)
    for name, each in results.items():
        lines += ["", f"#### {name}"]
        if each.get("published"):
            same = f" Both give the same answer: `{each['same']}`." if each["same"] else ""
            lines += ["", f"Published: {each['published']}. Ours: {each['ours']}.{same}"]
        lines += _table(TIMINGS, each["timings"])
        lines += _table(VALUES, each["values"])
        lines += [line for note in each["notes"] for line in ("", note)]
    return "\n".join(lines) + "\n"


def _table(columns: Columns, entries: Sequence[Entry]) -> list[str]:
    if not entries:
        return []
    # A bar would end the cell.
    rows = [[text(each).replace("|", "/") for text in columns.values()] for each in entries]
    lines = ["", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]
