"""`sonosweep doctor`: one screen on what a run would find here, and what to do about the rest."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from experiments.config.recipe import load_config
from experiments.doctor import machine, needs
from experiments.doctor.checks import Checker, run_checks

DEFAULT_RECIPE = "demo"
TIMEOUT_S = 130.0
"""For all lines together; the longest of them is an import of torch from a network disk."""
CHECKERS: dict[str, Checker] = {
    "python": machine.check_python,
    "cores": machine.check_cores,
    "temporary": machine.check_temporary,
    "gpu": machine.check_gpus,
    "weights": needs.check_weights,
    "data": needs.check_data,
    "store": needs.check_store,
    "wandb": needs.check_wandb,
    "slurm": needs.check_slurm,
    "torch": machine.check_torch,
}
STYLES = {"ok": "green", "warn": "yellow", "missing": "bold red"}


def doctor(sources: Sequence[str], console: Console) -> dict[str, Any]:
    """Check everything, and print each line as soon as it and those before it are there.

    Args:
        sources: `[RECIPE] [KEY=VALUE]...`; without a recipe that of `sonosweep demo`.
        console: Where to print.

    Returns:
        The same for programs; `reason` says why a run cannot start, None where it can.

    Raises:
        InputError: For a recipe or a word that no command would take.
    """
    has_recipe = bool(sources) and "=" not in sources[0]
    recipe = sources[0] if has_recipe else DEFAULT_RECIPE
    config = load_config(recipe, list(sources[1:] if has_recipe else sources))
    console.print(Text(f"sonosweep doctor: what a run of {recipe} would find", style="bold"))
    # `sonosweep demo` draws phantoms; other recipes, and `sonosweep sweep`, need a folder.
    own = {"data": needs.check_demo_data} if recipe == DEFAULT_RECIPE else {}
    checks = {}
    for name, check in run_checks(CHECKERS | own, config, timeout_s=TIMEOUT_S):
        checks[name] = check
        line = Text(_wrapped(f"{check.mark:<8}{name:<10}", check.text, console.width))
        line.stylize(STYLES[check.mark], 0, 8)
        console.print(line, soft_wrap=True)
        if check.remedy:
            console.print(
                Text(_wrapped(" " * 15 + "-> ", check.remedy, console.width)), soft_wrap=True
            )
    missing = [f"{name}: {check.text}" for name, check in checks.items() if check.mark == "missing"]
    where, reason = "on SLURM" if config.sweep.launcher == "slurm" else "here", "; ".join(missing)
    end = f"A run cannot start {where}: {reason}" if missing else f"A run can start {where}."
    console.print(Text(end, style=STYLES["missing" if missing else "ok"]), soft_wrap=True)
    return {
        "recipe": recipe,
        "launcher": config.sweep.launcher,
        "can_start": not missing,
        "reason": reason or None,
        "checks": [{"name": name, **asdict(check)} for name, check in checks.items()],
    }


def _wrapped(head: str, text: str, width: int) -> str:
    """Lines of at most 99 columns; paths and commands stay whole, to be copied."""
    return textwrap.fill(
        head + text,
        width=min(width, 100) - 1,
        subsequent_indent=" " * 18,
        break_long_words=False,
        break_on_hyphens=False,
    )
