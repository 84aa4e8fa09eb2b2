"""From a cell of a table back to its runs: `sonosweep report RECIPE --explain CELL`."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from datamodules.allowed import nearest
from datamodules.choices import CHOICES
from datamodules.errors import InputError
from datamodules.integrity import read_object, read_sealed
from experiments.config.schema import ExperimentConfig
from experiments.config.words import counted
from experiments.results.axes import AXES, SERIES, each_series, shown_axes
from experiments.results.cells import cells, rows_of
from experiments.results.checked import AGAIN
from experiments.results.measures import MEASURES
from experiments.results.rows import read_sweep, with_amounts
from experiments.results.self_training import kept_sentence
from experiments.runner.progress import clock
from experiments.store.provenance import code_words
from experiments.store.runs import RunStore

_PARTS = {
    "cohort": "test_cohort",
    "prompt": "prompt",
    "amount": "amount",
    **{name: name for name in SERIES},
}
"""Parts of a cell's name in order, and the column of each; the axes may be left out."""


def explain_cell(config: ExperimentConfig, cell: str) -> str:
    """Name the numbers of a cell of a recipe's results, its trials, and every run behind each.

    A run names its command by a number; the commands close the text.

    Args:
        config: The recipe.
        cell: COHORT/PROMPT/AMOUNT/CONDITION as `hc18/whole_image/20/strong`, or with several
            segmenters or generators COHORT/PROMPT/AMOUNT/SEGMENTER/CONDITION[/GENERATOR]; with
            several choices of images /CHOICE stands last; the amount is a number of images or a
            share as `5%`, 0 for a control; `*` takes all of a part.

    Raises:
        InputError: For a part that is not in the results, or a sweep without results.
    """
    store = RunStore(Path(config.store.root))
    folder = store.sweep_dir(config.name)
    results, per_image = read_sweep(folder, output=config.evaluation.output)
    if "score_id" not in results:
        raise InputError(f"{folder / 'results.csv'}: no column score_id; {AGAIN}")
    chosen = choose(results, cell)
    found, shown = cells(chosen, per_image=per_image), shown_axes(results)
    lines: list[str] = []
    commands: dict[str, int] = {}
    for _, row in found.iterrows():
        where = (row["test_cohort"], row["prompt"], row["amount"], *_series_words(row, shown))
        lines += ["/".join(where), *_numbers(row)]
        for _, trial in rows_of(row, rows=chosen).iterrows():
            names = ("support", "seed", "generator_seed", "fold")
            said = [f"{name} {trial[name]:.0f}" for name in names if pd.notna(trial[name])]
            said.append(f"Dice {100 * trial['dice_mean']:.2f} %")
            lines.append(f"  trial {trial['trial_id']}: {', '.join(said)}")
            runs = _runs(store, trial["score_id"], role="score", commands=commands, seen=set())
            lines += ["    " + line for line in runs]
        lines.append("")
    waiting = chosen[chosen["status"] != "done"].drop_duplicates("trial_id")
    for _, trial in waiting.iterrows():
        reason = trial["reason"] if isinstance(trial["reason"], str) else ""
        lines.append(f"{trial['trial_id']}: {trial['status']} {reason}".rstrip())
    for command, number in commands.items():
        lines += [f"command {number}:", command]
    return "\n".join(lines).rstrip("\n")


def choose(results: pd.DataFrame, cell: str) -> pd.DataFrame:
    """Rows of a cell of results.csv, named as for `explain_cell`.

    Raises:
        InputError: For a part that no row has, or where an axis left out has several values.
    """
    words = cell.split("/")
    # A choice may stand last, whatever axes before it are left out.
    chosen_by = words.pop() if len(words) > 4 and words[-1] in CHOICES else None
    if len(words) not in (4, 5, 6):
        raise InputError(
            f"--explain {cell}: expected COHORT/PROMPT/AMOUNT/CONDITION, as "
            "hc18/whole_image/20/strong, or COHORT/PROMPT/AMOUNT/SEGMENTER/CONDITION[/GENERATOR]; "
            "with several choices of images /CHOICE after it"
        )
    named = dict(zip([p for p in _PARTS if len(words) > 4 or p not in AXES], words, strict=False))
    named |= {} if chosen_by is None else {"choice": chosen_by}
    chosen = with_amounts(results)
    for part, word in named.items():
        if word == "*":
            continue
        names = _names(chosen, part)
        wanted = word.replace(" ", "").lower()
        if part == "amount":
            wanted = wanted.removesuffix("s").removesuffix("image")
        is_here = (names == wanted).any(axis="columns")
        if not is_here.any():
            known = [name for column in names for name in names[column].unique() if name]
            raise InputError(f"--explain {cell}: no {part} {word}; {nearest(word, known)}")
        chosen = chosen[is_here]
    open_axes = [name for name in shown_axes(chosen) if name not in named]
    if open_axes:
        said = [name for name in AXES if name != "choice" or name in open_axes]
        series = {"/".join(_series_words(keys, said)): None for keys, _ in each_series(chosen)}
        raise InputError(
            f"--explain {cell}: several have this name, by {' and '.join(open_axes)}; end it with "
            f"one of {', '.join(series)}"
        )
    return chosen


def _series_words(keys: Mapping, shown: Sequence[str]) -> list[str]:
    return [keys[name] for name in SERIES if keys[name] and (name not in AXES or name in shown)]


def _names(rows: pd.DataFrame, part: str) -> pd.DataFrame:
    """What each row may be called in a part of a cell's name: an amount by its number or share."""
    if part != "amount":
        return rows[[_PARTS[part]]].fillna("").apply(lambda names: names.str.lower())
    counts = rows["n_real"].map("{:.0f}".format)
    shares = rows["amount"].where(rows["amount"].str.contains("%"), "").str.replace(" ", "")
    return pd.DataFrame({"count": counts, "share": shares})


def _numbers(row: pd.Series) -> list[str]:
    nouns = {"n_trials": "trial", "n_supports": "support", "n_exams": "exam"}
    head = "  " + ", ".join(counted(row[name], noun) for name, noun in nouns.items())
    if pd.notna(row["dice_low"]):
        head += f", dice 95 % CI [{100 * row['dice_low']:.2f}, {100 * row['dice_high']:.2f}]"
    return [head] + [
        f"  {name} {row[name] * m.factor:.2f}" + (" %" if m.factor == 100 else "")
        for name, m in MEASURES.items()
        if pd.notna(row[name])
    ]


def _runs(
    store: RunStore, key: str, *, role: str, commands: dict[str, int], seen: set[str]
) -> list[str]:
    """Name a run and, indented, what it was made from; a run that stood before is only named."""
    run_dir = store.run_dir(*key.split("/"))
    if key in seen:
        return [f"{role}: {run_dir} (above)"]
    seen.add(key)
    manifest, lines = read_object(run_dir / "manifest.json"), [f"{role}: {run_dir}"]
    if manifest is None:
        return [*lines, "  manifest.json is missing or cannot be read"]
    number = commands.setdefault(str(manifest.get("command", "unknown")), len(commands) + 1)
    done = read_sealed(run_dir / "DONE.json")
    started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(manifest["started"]))
    took = clock(done["seconds"]) if done else "not finished"
    code = code_words(manifest)
    lines.append(f"  {manifest['label']}; {code}; started {started}, {took}; command {number}")
    if key.startswith("pseudo/") and done is not None:
        lines.append(f"  {kept_sentence(done)}")
    for name, upstream in sorted(manifest["upstream"].items(), key=lambda item: item[0] != "fit"):
        below = _runs(store, upstream, role=name, commands=commands, seen=seen)
        lines += ["  " + line for line in below]
    return lines
