"""Put a sweep's table into a Markdown file between two markers, so that no number is typed."""

import json
from pathlib import Path

from datamodules.errors import InputError
from datamodules.storage import write_atomic
from experiments.config.words import counted
from experiments.results.tables import LABELS
from experiments.results.text import Block, markdown_table
from experiments.runner.progress import clock
from experiments.runner.sweep import Sweep
from experiments.store.provenance import machine

COLUMNS = [*LABELS, "real", "n real", "total labels", "weighted Dice %", "weighted 95 % CI"]
COLUMNS += ["Dice %", "mask Dice %", "HD mm", "HC error mm", "exams"]


def insert_results(path: Path, *, sweep: Sweep, tables: list[Block], command: str) -> None:
    """Replace what stands between the markers by the sweep's table, command, machine and time.

    A file with several blocks names the sweep in the first marker: `<!-- results NAME -->`.

    Raises:
        InputError: If the file has no markers.
    """
    replace_block(path, _block(sweep, tables, command), kind="results", name=sweep.config.name)


def replace_block(path: Path, block: str, *, kind: str, name: str = "") -> None:
    """Replace what stands between `<!-- KIND -->`, or `<!-- KIND NAME -->`, and `<!-- /KIND -->`.

    The markers are whole lines, and so is what counts as one; all else stays as it is.

    Raises:
        InputError: As `find_block` does.
    """
    # Of a link the file that it leads to.
    path = path.resolve()
    lines, first, last = find_block(path, kind=kind, name=name)
    newline = "\r\n" if lines[first].endswith("\r\n") else "\n"
    text = block.replace("\n", newline)
    write_atomic(path, "".join(lines[: first + 1]) + text + "".join(lines[last:]))


def find_block(path: Path, *, kind: str, name: str = "") -> tuple[list[str], int, int]:
    """Lines of a file, and which of them are the markers of a block: see `replace_block`.

    Raises:
        InputError: If the file is missing or no UTF-8, or has no such lines, or several, or
            another block begins before this one ends.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a Markdown file with the markers")
    try:
        lines = path.read_bytes().decode().splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8; save it as that") from error
    marks = [line.strip() for line in lines]
    plain, named, end = f"<!-- {kind} -->", f"<!-- {kind} {name} -->", f"<!-- /{kind} -->"
    start = named if named in marks else plain
    if start not in marks or end not in marks[marks.index(start) :]:
        raise InputError(
            f"{path}: has no lines {plain} and {end}; add them where the table belongs"
        )
    first = marks.index(start)
    last = marks.index(end, first)
    within = marks[first + 1 : last]
    if marks.count(start) > 1 or any(mark.startswith(f"<!-- {kind}") for mark in within):
        raise InputError(
            f"{path}: {start} stands twice, or another block begins before its {end}; correct it"
        )
    return lines, first, last


def _block(sweep: Sweep, tables: list[Block], command: str) -> str:
    lines = []
    for block in tables:
        frame = block.rows
        columns = [name for name in COLUMNS if name in frame and (frame[name] != "").any()]
        shown = frame[columns].replace("", "–")
        for i, note in enumerate(block.notes):
            shown.loc[i, columns[-1]] = note or shown.loc[i, columns[-1]]
        lines += [f"**{block.title}**", "", *markdown_table(shown, left=LABELS), ""]
    host, seconds, memory, started = machine(), 0.0, 0.0, []
    gpus: set[str] = set()
    for run in sweep.runs.values():
        if run.is_done:
            result, path = sweep.result(run), sweep.run_dir(run) / "manifest.json"
            seconds, memory = seconds + result["seconds"], max(memory, result["peak_memory_mib"])
            gpus |= {result["gpu"]} if "gpu" in result else set()
            started.append(json.loads(path.read_text())["git_sha"] or "none")
    spent = clock(seconds)
    unit = "hours:minutes:seconds" if spent.count(":") == 2 else "minutes:seconds"
    commits = ", ".join(sorted({sha[:10] for sha in started}))
    lines.append(
        f"`{command}`: {counted(len(sweep.plan.grid), 'trial')}, {spent} ({unit}) of work "
        f"in all, at most {memory / 1024:.1f} GiB a process, on {host['cores']} cores of "
        f"{host['cpu']}{''.join(f', {gpu}' for gpu in sorted(gpus))}; commit {commits}."
    )
    return "\n".join(lines) + "\n"
