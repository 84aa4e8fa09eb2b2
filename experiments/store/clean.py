"""`sonosweep clean`: what old artefacts cost, and their removal when it is asked for.

Nothing is removed that a process holds, that a sweep refers to which was not named, or that was not
selected. A directory is renamed before it is emptied, so an interruption leaves nothing that
another sweep would take for complete.
"""

import fcntl
import functools
import os
import re
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal as format_bytes
from rich.text import Text

from datamodules.errors import InputError
from experiments.store.guard import LOCK_NAME, check_version
from experiments.store.inventory import (
    PREPARED,
    REMOVED_PREFIX,
    SHARED,
    Artefact,
    Inventory,
    take_inventory,
)
from experiments.store.runs import hold
from experiments.store.screen import NAMED, format_duration, print_table, say, say_more

_UNIT_S = {"h": 3600.0, "d": 86400.0, "w": 604800.0}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a user asks to have removed: what fits all that is given. Nothing given is nothing."""

    orphans: bool = False
    """What no sweep refers to; together with `sweeps`, also what these alone refer to."""
    stages: tuple[str, ...] = ()
    """Only of these stages."""
    sweeps: tuple[str, ...] = ()
    """What no sweep but these refers to."""
    older_than_s: float | None = None
    """Only what was last used longer ago, seconds."""

    def has(self, artefact: Artefact, *, now: float) -> bool:
        """Whether something is asked for, be it protected or not."""
        if self.stages and artefact.stage not in self.stages:
            return False
        if self.older_than_s is not None and now - artefact.last_use < self.older_than_s:
            return False
        if artefact.stage == PREPARED:
            # No plan names them, so they are nobody's orphans.
            return PREPARED in self.stages and not self.sweeps
        if not self.orphans and not self.sweeps:
            return True
        is_named = not artefact.sweeps.isdisjoint(self.sweeps)
        return is_named or (self.orphans and not artefact.sweeps)


@dataclass
class Outcome:
    """What a selection comes to."""

    removed: list[Artefact]
    """What is removed, or would be."""
    kept: list[tuple[Artefact, str]]
    """What was asked for and stays, and why."""
    left: list[Path]
    """What is out of use but could not be deleted yet."""


def parse_age(text: str) -> float:
    """Seconds of an age as 12h, 30d or 2w; InputError for anything else."""
    found = re.fullmatch(r"(\d{1,6})([hdw])", text)
    if found is None:
        raise InputError(
            f"--older-than {text}: write a number and h, d or w, as 30d, of six digits at most"
        )
    return int(found[1]) * _UNIT_S[found[2]]


def choose(
    inventory: Inventory, selection: Selection, *, delete: Callable[[Artefact], str] = lambda _: ""
) -> Outcome:
    """Decide what a selection removes, and why the rest of it stays.

    `delete` removes what may go, and says why not where it cannot; by itself nothing goes.
    InputError for a sweep or a stage that there is none of, for a named sweep that runs, and where
    it is not known what some sweep, or a trial that runs, refers to.
    """
    outcome = Outcome(removed=[], kept=[], left=[])
    if selection == Selection():
        return outcome
    _check(inventory, selection)
    now, gone = time.time(), set()
    # Embeddings come after the stages: an index that goes no longer needs its files.
    for artefact in sorted(inventory.artefacts, key=lambda each: each.stage in SHARED):
        if selection.has(artefact, now=now):
            reason = _protected(artefact, inventory, sweeps=selection.sweeps, gone=gone)
            reason = reason or delete(artefact)
            if reason:
                outcome.kept.append((artefact, reason))
            else:
                outcome.removed.append(artefact)
                gone.add(artefact.key)
    return outcome


def remove(root: Path, selection: Selection) -> Outcome:
    """Remove what is selected, and finish what an earlier removal left.

    Sweeps that start meanwhile wait until it is decided what goes. InputError as `choose`, and for
    a store that may not be written.
    """
    store = root / "store"
    try:
        with hold(store):
            inventory = take_inventory(root)
            outgoing = [*inventory.half_removed]
            delete = functools.partial(_remove, store=store, outgoing=outgoing)
            outcome = choose(inventory, selection, delete=delete)
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be removed ({error.strerror}), what came before it is gone; "
            "check who may write there"
        ) from error
    for path in outgoing:
        shutil.rmtree(path, ignore_errors=True)
    outcome.left += [path for path in outgoing if path.exists()]
    return outcome


def _check(inventory: Inventory, selection: Selection) -> None:
    root, stages = inventory.root, sorted({each.stage for each in inventory.artefacts})
    for name in selection.sweeps:
        if name not in inventory.sweeps:
            known = ", ".join(sorted(inventory.sweeps)) or "none"
            raise InputError(f"--sweep {name}: no such sweep in {root}; known: {known}")
        if inventory.sweeps[name].is_used:
            raise InputError(f"--sweep {name}: it runs now; stop it first")
        if any(each.state == "held" and name in each.sweeps for each in inventory.artefacts):
            raise InputError(f"--sweep {name}: some of its stages run now; stop them first")
    for stage in selection.stages:
        if stage not in stages:
            known = ", ".join(stages) or "nothing at all"
            raise InputError(f"--stage {stage}: the store holds none; it holds {known}")
    if inventory.has_trials:
        raise InputError(
            f"{root}: trials run that no plan names; wait for them, or stop them first"
        )
    for name in inventory.unknown_sweeps:
        raise InputError(
            f"{root / name}: has no readable plan.json, so it is not known what it refers to; "
            f"`sonosweep report {root / name / 'config.yaml'}` writes it, or move the folder away"
        )


def _protected(
    artefact: Artefact, inventory: Inventory, *, sweeps: Sequence[str], gone: set[str]
) -> str:
    """Why something that was asked for stays; nothing where it may go."""
    others = sorted(artefact.sweeps.difference(sweeps))
    refer = f"sweep {others[0]} refers" if len(others) == 1 else f"sweeps {', '.join(others)} refer"
    users, owners = artefact.users - gone, artefact.owners - gone
    # A stage that runs may be reading any of the shared files.
    is_read = artefact.stage in SHARED and inventory.is_in_use
    # Made by a sweep that runs, maybe: whatever has become of its plan, that may read it still.
    is_young = not artefact.sweeps and artefact.last_use >= inventory.running_since
    reasons = {
        "in use": artefact.state == "held",
        f"{refer} to it": bool(others),
        "a sweep runs on this store": is_read,
        "made since the start of a sweep that runs": is_young,
        f"{min(users, default='')} uses it": bool(users),
        f"{min(owners, default='')} is not finished and may use it": bool(owners),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _remove(artefact: Artefact, *, store: Path, outgoing: list[Path]) -> str:
    """Delete a file, or rename a directory and add it to `outgoing`; why not, or nothing."""
    if artefact.stage in SHARED and artefact.paths[0].is_file():
        for path in artefact.paths:
            path.unlink(missing_ok=True)
        return ""
    (folder,) = artefact.paths
    target = store / f"{REMOVED_PREFIX}{artefact.stage}-{artefact.name}-{os.getpid()}"
    try:
        with (folder / LOCK_NAME).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder.rename(target)
    except FileNotFoundError:
        return "another process removed it"
    except BlockingIOError:
        return "in use"
    outgoing.append(target)
    return ""


def clean_command(root: Path, selection: Selection, *, yes: bool, console: Console) -> None:
    """List a store, or what a selection would remove; remove it where that was said.

    InputError for a store that there is not, or of a newer version.
    """
    if not (root / "store").is_dir():
        raise InputError(f"{root}: holds no store; give --root, the store.root of your sweeps")
    check_version(root)
    inventory = take_inventory(root)
    if selection == Selection():
        print_inventory(inventory, console)
        if yes:
            say(console, "nothing was removed: say what, with --orphans, --sweep or --stage")
    else:
        outcome = remove(root, selection) if yes else choose(inventory, selection)
        _print_outcome(outcome, console, is_done=yes)
    if inventory.foreign:
        names = [path.relative_to(root).as_posix() for path in inventory.foreign]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        line = f"not ours, left alone: {', '.join(names[:NAMED])}{more}"
        console.print(Text(line), soft_wrap=True)


def _print_outcome(outcome: Outcome, console: Console, *, is_done: bool) -> None:
    if is_done:
        say(console, f"removed {_summary(outcome.removed)}")
    else:
        for artefact in outcome.removed[:NAMED]:
            # A name is copied whole, so it is not folded.
            line = f"  {artefact.key}  {format_bytes(artefact.n_bytes)}"
            console.print(Text(line), soft_wrap=True)
        say_more(console, len(outcome.removed))
        end = "; add --yes to do it" if outcome.removed else ""
        say(console, f"would remove {_summary(outcome.removed)}{end}")
    reasons: dict[str, list[Artefact]] = defaultdict(list)
    for artefact, reason in outcome.kept:
        reasons[reason].append(artefact)
    for reason, found in list(reasons.items())[:NAMED]:
        say(console, f"kept {_summary(found)}: {reason}")
    say_more(console, len(reasons), more=" for other reasons")
    for path in outcome.left:
        say(console, f"{path} is out of use but could not be deleted; the next clean tries again")


def print_inventory(inventory: Inventory, console: Console) -> None:
    """Print what each stage holds, what of it no sweep refers to, and how to remove it."""
    by_stage: dict[str, list[Artefact]] = defaultdict(list)
    for artefact in inventory.artefacts:
        by_stage[artefact.stage].append(artefact)
    unreferenced, now = inventory.orphans(), time.time()
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


def _summary(artefacts: Sequence[Artefact]) -> str:
    """Counts by stage and their size, as `3 fit, 9 score (1.2 GB)`."""
    counts = Counter(each.stage for each in artefacts)
    named = ", ".join(f"{n} {stage}" for stage, n in counts.items())
    n_bytes = sum(each.n_bytes for each in artefacts)
    return f"{named} ({format_bytes(n_bytes)})" if named else "nothing"
