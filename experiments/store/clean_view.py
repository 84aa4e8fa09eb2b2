"""What `sonosweep clean` prints: readable at 60 columns, in a log, and without colours."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.store.clean import Choice, Selection, choose, clean_inventory, orphans, remove
from experiments.store.inventory import PREPARED, Artefact, Inventory
from experiments.store.status_view import ago

NAMED = 20
"""Artefacts that are named one by one."""


def clean_command(root: Path, selection: Selection, *, yes: bool, console: Console) -> None:
    """List a store, or what a selection would remove; remove it where that was said.

    Raises:
        InputError: As `clean.choose` and `clean.remove`; `--yes` alone removes nothing.
    """
    inventory = clean_inventory(root)
    if selection.is_empty:
        print_inventory(inventory, console)
        if yes:
            _say(console, "nothing was removed: say what, with --orphans, --sweep or --stage")
        return
    if not yes:
        choice = choose(inventory, selection, now=time.time())
        _print_choice(choice, console)
        return
    done = remove(root, selection)
    _say(console, f"removed {_amount(done.removed)}")
    _print_kept(done.kept, console)
    for path in done.left:
        _say(console, f"{path} is out of use but could not be deleted; the next clean tries again")


def size(n_bytes: float) -> str:
    """Bytes in their largest decimal unit, as 940 B, 1.2 MB or 35 GB."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while n_bytes >= 999.5 and len(units) > 1:
        n_bytes /= 1000
        del units[0]
    digits = 1 if units[0] != "B" and n_bytes < 9.95 else 0
    return f"{n_bytes:.{digits}f} {units[0]}"


def print_inventory(inventory: Inventory, console: Console) -> None:
    """Print what each stage holds, what of it no sweep refers to, and how to remove it."""
    by_stage: dict[str, list[Artefact]] = defaultdict(list)
    for artefact in inventory.artefacts:
        by_stage[artefact.stage].append(artefact)
    nobodys = Counter(each.stage for each in orphans(inventory))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("stage", overflow="fold")
    for name in ("items", "size", "orphans", "last use"):
        table.add_column(name, justify="right")
    now = time.time()
    for stage, found in by_stage.items():
        used = max(each.last_use for each in found)
        table.add_row(
            stage,
            str(len(found)),
            size(sum(each.n_bytes for each in found)),
            "?" if stage == PREPARED or inventory.unknown_sweeps else str(nobodys[stage]),
            f"{ago(max(0.0, now - used))} ago",
        )
    console.print(table)
    console.print()
    _say(console, f"all: {_amount(inventory.artefacts)}")
    _print_notes(inventory, console)
    _say(
        console,
        "remove with --orphans, --sweep NAME, --stage STAGE, --older-than 30d, and --yes",
    )


def _print_notes(inventory: Inventory, console: Console) -> None:
    if inventory.unknown_sweeps:
        names = ", ".join(inventory.unknown_sweeps)
        _say(console, f"no readable plan.json, so nothing can be removed: {names}")
    else:
        _say(console, f"orphans, which no sweep refers to: {_amount(orphans(inventory))}")
    for state, what in (("held", "running now"), ("unfinished", "interrupted or failed")):
        found = [each for each in inventory.artefacts if each.state == state]
        if found:
            _say(console, f"{what}: {_amount(found)}")
    if inventory.half_removed:
        n = len(inventory.half_removed)
        _say(console, f"half removed: {n}; the next removal finishes it")


def _print_choice(choice: Choice, console: Console) -> None:
    for artefact in choice.chosen[:NAMED]:
        console.print(Text(f"  {artefact.key}  {size(artefact.n_bytes)}"), soft_wrap=True)
    if len(choice.chosen) > NAMED:
        _say(console, f"  and {len(choice.chosen) - NAMED} more")
    end = "; add --yes to do it" if choice.chosen else ""
    _say(console, f"would remove {_amount(choice.chosen)}{end}")
    _print_kept(choice.kept, console)


def _print_kept(kept: Iterable[tuple[Artefact, str]], console: Console) -> None:
    reasons: dict[str, list[Artefact]] = defaultdict(list)
    for artefact, reason in kept:
        reasons[reason].append(artefact)
    for reason, found in list(reasons.items())[:NAMED]:
        _say(console, f"kept {_amount(found)}: {reason}")
    if len(reasons) > NAMED:
        _say(console, f"kept more for {len(reasons) - NAMED} other reasons")


def _amount(artefacts: Sequence[Artefact]) -> str:
    """Counts by stage and their size, as `3 fit, 9 score (1.2 GB)`."""
    counts = Counter(each.stage for each in artefacts)
    named = ", ".join(f"{n} {stage}" for stage, n in counts.items())
    return f"{named} ({size(sum(each.n_bytes for each in artefacts))})" if named else "nothing"


def _say(console: Console, line: str) -> None:
    console.print(Text(line))
