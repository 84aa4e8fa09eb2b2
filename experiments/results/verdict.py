"""The first words of a report: what was compared, what came out, how sure; three short sentences.

Each has at most 25 words. `findings` says the rest, below.
"""

import pandas as pd

from experiments.config.conditions import condition_phrase
from experiments.results.contrasts import (
    Contrasts,
    comparisons,
    is_too_small,
    primary_rows,
    verdict,
)
from experiments.results.findings import size
from experiments.results.text import counted

MAX_WORDS = 25


def verdict_sentences(contrasts: Contrasts) -> list[str]:
    """Say what the comparison that counts found: the primary one, or else the first.

    Returns:
        Three sentences, or one that says why there is nothing to say yet.
    """
    row = leading_row(contrasts)
    if row is None:
        return ["No two conditions can be compared yet."]
    return [_compared(row), _came_out(row), _how_sure(row)]


def leading_row(contrasts: Contrasts) -> pd.Series | None:
    """The primary contrast where it has results, else the first of the others."""
    primary = primary_rows(contrasts.family)
    if len(primary) and primary["role"].iloc[0] == "primary":
        return primary.iloc[0]
    others = comparisons(contrasts.family)
    return others.iloc[0] if len(others) else None


def _compared(row: pd.Series) -> str:
    first, second = (condition_phrase(row[name]).rstrip(",") for name in ("condition", "baseline"))
    amount = counted(row["n_real"], "labelled image")
    who = f", segmenter {row['segmenter']}" if row.get("segmenter") else ""
    return f"We compared {first} with {second}: {amount}{who}, tested on {row['test_cohort']}."


def _came_out(row: pd.Series) -> str:
    measure = row.get("measure", "dice")
    name = "Dice" if measure == "dice" else "The HC error"
    found, change = verdict(row), size(row["mean"], measure=measure, sign=True)
    if found in ("raised", "lowered"):
        moved = "rose" if found == "raised" else "fell"
        is_gain = (found == "raised") == (measure == "dice")
        size_text = size(abs(row["mean"]), measure=measure)
        return f"{name} {moved} by {size_text}: a {'gain' if is_gain else 'loss'}."
    if is_too_small(row):
        return f"{name} changed by {change}, less than what would matter."
    return f"{name} changed by {change}; neither a gain nor a loss is shown."


def _how_sure(row: pd.Series) -> str:
    exams = counted(row["n_exams"], "test exam")
    if verdict(row) == "no interval":
        return f"{exams} {'gives' if row['n_exams'] == 1 else 'give'} no interval: no evidence yet."
    measure = row.get("measure", "dice")
    low, high = (size(row[end], measure=measure) for end in ("low", "high"))
    n_supports = row.get("n_supports", 1)
    over = f"{exams} and {counted(n_supports, 'draw')} of labelled images"
    if n_supports == 1:
        over = f"{exams}; other labelled images were not tried"
    level = f"{100 * row.get('level', 0.95):.4g} %"
    return f"The {level} interval runs from {low.split()[0]} to {high}, over {over}."
