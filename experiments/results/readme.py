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
from experiments.store.provenance import code_name, machine

COLUMNS = [*LABELS, "real", "n real", "total labels", "weighted Dice %", "weighted 95 % CI"]
COLUMNS += ["Dice %", "mask Dice %", "HD mm", "HC error mm", "exams"]


def replace_block(path: Path, block: str, *, kind: str, name: str = "") -> None:
    """Replace what stands between the lines `<!-- KIND -->`, or `<!-- KIND NAME -->` in a file with
    several blocks, and `<!-- /KIND -->`.

    Raises:
        InputError: As `find_block` does.
    """
    # Of a link the file that it leads to.
    path = path.resolve()
    lines, first, last = find_block(path, kind=kind, name=name)
    text = block.replace("\n", "\r\n" if lines[first].endswith("\r\n") else "\n")
    write_atomic(path, "".join([*lines[: first + 1], text, *lines[last:]]))


def find_block(path: Path, *, kind: str, name: str = "") -> tuple[list[str], int, int]:
    """Lines of a file, and which of them are the markers of a block: see `replace_block`.

    Raises:
        InputError: If the file is missing or no UTF-8, or where text would be lost: it has no such
            lines, or several, or another block begins before this one ends.
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


def results_block(sweep: Sweep, tables: list[Block], *, command: str) -> str:
    """A sweep's table, command, machine and time, as Markdown."""
    lines = []
    for block in tables:
        frame = block.rows
        columns = [name for name in COLUMNS if name in frame and (frame[name] != "").any()]
        shown = frame[columns].replace("", "–")
        for i, note in enumerate(block.notes):
            shown.loc[i, columns[-1]] = note or shown.loc[i, columns[-1]]
        lines += [f"**{block.title}**", "", *markdown_table(shown, left=LABELS), ""]
    done = [run for run in sweep.runs.values() if run.is_done]
    results = [sweep.result(run) for run in done]
    manifests = [json.loads((sweep.run_dir(run) / "manifest.json").read_text()) for run in done]
    spent = clock(sum(result["seconds"] for result in results))
    unit = "hours:minutes:seconds" if spent.count(":") == 2 else "minutes:seconds"
    memory = max((result["peak_memory_mib"] for result in results), default=0)
    gpus = sorted({result["gpu"] for result in results if "gpu" in result})
    # Where the runs were, which may not be where this is written.
    hosts = [manifest.get("machine") or machine() for manifest in manifests]
    cores = sorted({f"{host['cores']} cores of {host['cpu']}" for host in hosts})
    # An installed package has no commit.
    code = "commit" if all(manifest["git_sha"] for manifest in manifests) else "code"
    names = sorted({code_name(manifest) for manifest in manifests})
    lines.append(
        f"`{command}`: {counted(len(sweep.plan.grid), 'trial')}, {spent} ({unit}) of work "
        f"in all, at most {memory / 1024:.1f} GiB a process, on {', '.join([*cores, *gpus])}; "
        f"{code} {', '.join(names)}."
    )
    return "\n".join(lines) + "\n"
