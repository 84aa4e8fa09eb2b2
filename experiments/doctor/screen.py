"""`sonosweep doctor`: one screen on what a run would find here, and what to do about the rest."""

import functools
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from experiments.config.recipe import load_config
from experiments.config.schema import ExperimentConfig
from experiments.doctor import machine as checks_machine
from experiments.doctor import run as checks_run
from experiments.doctor.checks import Check, Checker, Mark, run_checks

DEFAULT_RECIPE = "demo"
TIMEOUT_S = 130.0
"""For all lines together; the longest of them is an import of torch from a network disk."""
CHECKERS: dict[str, Checker] = {
    "python": checks_machine.check_python,
    "libraries": checks_machine.check_libraries,
    "code": checks_run.check_code,
    "cpu": checks_machine.check_cores,
    "memory": checks_machine.check_memory,
    "gpu": checks_machine.check_gpus,
    "weights": checks_run.check_weights,
    "data": checks_run.check_data,
    "store": checks_run.check_store,
    "wandb": checks_run.check_wandb,
    "slurm": checks_run.check_slurm,
    "torch": checks_machine.check_torch,
}
STYLES: dict[Mark, str] = {"ok": "green", "warn": "yellow", "missing": "bold red"}
INDENT = 20
"""Columns of mark and name."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All lines, and what follows from them."""

    recipe: str
    launcher: str
    checks: list[Check]

    @property
    def reason(self) -> str | None:
        """Why a run cannot start, one line; None where it can."""
        missing = [f"{c.name}: {c.text}" for c in self.checks if c.mark == "missing"]
        return "; ".join(missing) or None


def diagnose(sources: Sequence[str]) -> tuple[str, ExperimentConfig, Iterator[Check]]:
    """Start all checks for a run of a recipe.

    Args:
        sources: `[RECIPE] [KEY=VALUE]...`; without a recipe that of `sonosweep demo`.

    Returns:
        The recipe's name, its config, and the lines as they come.

    Raises:
        InputError: For a recipe or a word that no command would take.
    """
    has_recipe = bool(sources) and "=" not in sources[0]
    recipe = sources[0] if has_recipe else DEFAULT_RECIPE
    config = load_config(recipe, list(sources[1:] if has_recipe else sources))
    # `sonosweep demo` draws phantoms; other recipes, and `sonosweep sweep`, need a folder.
    look = functools.partial(checks_run.check_data, may_draw=recipe == DEFAULT_RECIPE)
    return recipe, config, run_checks(CHECKERS | {"data": look}, config, timeout_s=TIMEOUT_S)


def doctor(sources: Sequence[str], console: Console | None) -> Diagnosis:
    """Check everything, and print each line as soon as it and those before it are there.

    Args:
        sources: `[RECIPE] [KEY=VALUE]...`.
        console: Where to print; None prints nothing.
    """
    recipe, config, found = diagnose(sources)
    if console is not None:
        console.print(Text(f"sonosweep doctor: what a run of {recipe} would find", style="bold"))
    checks = []
    for check in found:
        checks.append(check)
        if console is not None:
            print_check(check, console)
    diagnosis = Diagnosis(recipe=recipe, launcher=config.sweep.launcher, checks=checks)
    if console is not None:
        _print_end(diagnosis, console)
    return diagnosis


def as_dict(diagnosis: Diagnosis) -> dict[str, Any]:
    """The same for programs."""
    return {
        "recipe": diagnosis.recipe,
        "launcher": diagnosis.launcher,
        "can_start": diagnosis.reason is None,
        "reason": diagnosis.reason,
        "checks": [asdict(check) for check in diagnosis.checks],
    }


def print_check(check: Check, console: Console) -> None:
    """Print a line, broken between words to the console's width, and below it what to do."""
    # Wider lines are hard to read; a log's reader may have 80 columns.
    width = min(console.width, 100) - INDENT
    lines = _wrapped(check.text, width=width)
    if check.remedy and check.mark != "ok":
        first, *rest = _wrapped(f"-> {check.remedy}", width=width)
        lines += [first, *("   " + line for line in rest)]
    head = Text.assemble((f"{check.mark:<8}", STYLES[check.mark]), f"{check.name:<12}")
    for number, line in enumerate(lines):
        text = Text.assemble(head if number == 0 else " " * INDENT, line)
        console.print(text, soft_wrap=True)


def _wrapped(text: str, *, width: int) -> list[str]:
    # Paths and commands stay whole, to be copied.
    return textwrap.wrap(
        text, width=max(20, width - 3), break_long_words=False, break_on_hyphens=False
    )


def _print_end(diagnosis: Diagnosis, console: Console) -> None:
    where = "on SLURM" if diagnosis.launcher == "slurm" else "here"
    if diagnosis.reason is None:
        text = Text(f"A run can start {where}.", style="bold green")
    else:
        text = Text(f"A run cannot start {where}: {diagnosis.reason}", style="bold red")
    console.print(text, soft_wrap=True)
