"""What `sonosweep clean` prints."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from experiments.store.clean import Selection, choose, clean_inventory, orphans, remove
from experiments.store.inventory import PREPARED, Artefact, Inventory
from experiments.store.screen import (
    NAMED,
    format_bytes,
    format_duration,
    print_table,
    say,
    say_more,
)


def clean_command(root: Path, selection: Selection, *, yes: bool, console: Console) -> None:
    """List a store, or what a selection would remove; remove it where that was said."""
    inventory = clean_inventory(root)
    if selection.is_empty:
        print_inventory(inventory, console)
        if yes:
            say(console, "nothing was removed: say what, with --orphans, --sweep or --stage")
        return
    outcome = remove(root, selection) if yes else choose(inventory, selection)
    if yes:
        say(console, f"removed {_summary(outcome.removed)}")
    else:
        for artefact in outcome.removed[:NAMED]:
            # A name is copied whole, so it is not folded.
            line = f"  {artefact.key}  {format_bytes(artefact.n_bytes)}"
            console.print(Text(line), soft_wrap=True)
        say_more(console, len(outcome.removed))
        end = "; add --yes to do it" if outcome.removed else ""
        say(console, f"would remove {_summary(outcome.removed)}{end}")
    _print_kept(outcome.kept, console)
    for path in outcome.left:
        say(console, f"{path} is out of use but could not be deleted; the next clean tries again")


def print_inventory(inventory: Inventory, console: Console) -> None:
    """Print what each stage holds, what of it no sweep refers to, and how to remove it."""
    by_stage: dict[str, list[Artefact]] = defaultdict(list)
    for artefact in inventory.artefacts:
        by_stage[artefact.stage].append(artefact)
    unreferenced, now = orphans(inventory), time.time()
    n_orphans = Counter(each.stage for each in unreferenced)
    columns = ("stage", "items", "size", "orphans", "last use")
    rows = [
        (
            stage,
            str(len(found)),
            format_bytes(sum(each.n_bytes for each in found)),
            "?" if stage == PREPARED or inventory.unknown_sweeps else str(n_orphans[stage]),
            f"{format_duration(max(0.0, now - max(each.last_use for each in found)))} ago",
        )
        for stage, found in by_stage.items()
    ]
    print_table(console, columns, rows, numbers=columns[1:])
    say(console, f"\nall: {_summary(inventory.artefacts)}")
    if inventory.unknown_sweeps:
        names = ", ".join(inventory.unknown_sweeps)
        say(console, f"no readable plan.json, so nothing can be removed: {names}")
    else:
        say(console, f"orphans, which no sweep refers to: {_summary(unreferenced)}")
    for state, what in (("held", "running now"), ("unfinished", "interrupted or failed")):
        found = [each for each in inventory.artefacts if each.state == state]
        if found:
            say(console, f"{what}: {_summary(found)}")
    if inventory.half_removed:
        say(console, f"half removed: {len(inventory.half_removed)}; the next removal finishes it")
    say(console, "remove with --orphans, --sweep NAME, --stage STAGE, --older-than 30d, and --yes")


def _print_kept(kept: Iterable[tuple[Artefact, str]], console: Console) -> None:
    reasons: dict[str, list[Artefact]] = defaultdict(list)
    for artefact, reason in kept:
        reasons[reason].append(artefact)
    for reason, found in list(reasons.items())[:NAMED]:
        say(console, f"kept {_summary(found)}: {reason}")
    say_more(console, len(reasons), more=" reasons to keep something")


def _summary(artefacts: Sequence[Artefact]) -> str:
    """Counts by stage and their size, as `3 fit, 9 score (1.2 GB)`."""
    counts = Counter(each.stage for each in artefacts)
    named = ", ".join(f"{n} {stage}" for stage, n in counts.items())
    n_bytes = sum(each.n_bytes for each in artefacts)
    return f"{named} ({format_bytes(n_bytes)})" if named else "nothing"
