"""The first words of a report: what was compared, what came out, how sure; three short sentences.

Each has at most 25 words. `findings` says the rest, below.
"""

import math

import pandas as pd

from experiments.config.conditions import condition_phrase
from experiments.config.words import counted
from experiments.results.axes import (
    LEAK_FREE_PROMPT,
    each_place,
    is_control,
    prompt_phrase,
    series_label,
)
from experiments.results.cells import cells
from experiments.results.choosing import choosing_phrase, headline_contrasts
from experiments.results.contrasts import (
    Contrasts,
    comparisons,
    is_surely_small,
    is_too_small,
    level_text,
    primary_rows,
    verdict,
)
from experiments.results.findings import interval, more_labels, size
from experiments.results.rows import with_amounts

_TRIAL = ["fold", "support", "seed"]
"""What pairs the trials of two rows."""
_P_BELOW = 0.05
"""Below this a p, adjusted where there are several, shows a difference."""


def verdict_sentences(contrasts: Contrasts, results: pd.DataFrame) -> list[str]:
    """Say in three sentences what the comparison that counts found: the primary one, or else the
    first of conditions, or else the first of choices of the labelled images; or in one why there is
    nothing to compare.
    """
    row = leading_row(contrasts)
    if row is not None:
        return [_compared(row), _came_out(row), _how_sure(row)]
    chosen = headline_contrasts(contrasts.choices)
    if chosen.empty:
        return [_nothing_to_compare(contrasts, results)]
    row = chosen.iloc[0]
    return [_compared_choices(row), _came_out(row), _how_sure(row)]


def leading_row(contrasts: Contrasts) -> pd.Series | None:
    """The primary contrast where it has results, else the first of the others: of the main cohort,
    under the leak-free prompt where that was scored."""
    rows = primary_rows(contrasts.family)
    if rows.empty or rows["role"].iloc[0] != "primary":
        rows = next((own for *_, own in each_place(comparisons(contrasts.family))), rows[:0])
    return None if rows.empty else rows.iloc[0]


def _nothing_to_compare(contrasts: Contrasts, results: pd.DataFrame) -> str:
    present = list(dict.fromkeys(results.loc[~is_control(results), "condition"]))
    if len(present) == 1:
        one = f"The sweep has one condition, {condition_phrase(present[0]).rstrip(',')}"
        if len(contrasts.segmenters):
            return f"{one}; its segmenters are compared below."
        return f"{one}: name another in sweep.condition to compare it with."
    yet = "" if len(present) and (results["status"] == "done").all() else " yet"
    return f"No two conditions can be compared{yet}."


def comparison_table(
    contrasts: Contrasts, results: pd.DataFrame, *, per_image: pd.DataFrame
) -> tuple[pd.DataFrame, str]:
    """Put the levels beside the differences: the conditions of the comparison that counts.

    Returns:
        Text cells, a row a condition of its cohort, prompt, amount, segmenter and choice, no rows
        without a comparison; and a note where its conditions have different trials done.
    """
    leading = leading_row(contrasts)
    if leading is None:
        return pd.DataFrame(), ""
    # The levels of one place; the generator may differ, and is empty for conditions without one.
    place = ["test_cohort", "prompt", "amount", "segmenter", "choice"]
    done = with_amounts(results[results["status"] == "done"])
    is_here = (done[place] == leading[place]).all(axis="columns")
    here, note = _common_trials(done[~is_control(done) & is_here])
    found = cells(here, per_image=per_image)
    family = comparisons(contrasts.family)
    family = family[(family[place] == leading[place]).all(axis="columns")]
    # What all are compared with stands first, wherever the table of conditions has it.
    is_base = found["condition"].isin(family["base"])
    found = pd.concat([found[is_base], found[~is_base]])
    shown = ["generator"] if found["generator"].replace("", None).nunique() > 1 else []
    differences = {(row["condition"], row["generator"]): row for _, row in family.iterrows()}
    rows = []
    for _, cell in found.iterrows():
        row = differences.get((cell["condition"], cell["generator"]))
        rows.append(
            {
                "condition": series_label(cell, shown=shown),
                "labelled images": f"{cell['n_total_max']:.0f}",
                "unlabelled images": f"{cell['n_unlabelled']:.0f}",
                "Dice %": f"{100 * cell['dice_mean']:.1f}",
                "HC error mm": f"{cell['hc_abs_err_mm_mean']:.2f}",
                "Dice against the first row": (
                    "" if row is None else size(row["mean"], measure="dice", sign=True)
                ),
                f"{level_text(leading)} interval": "" if row is None else interval(row),
            }
        )
    return pd.DataFrame(rows).replace({"nan": "–", "": "–"}), note


def _common_trials(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Keep the trials that all series have, so that their levels can be compared; and a note."""
    trials = pd.Series(rows[_TRIAL].fillna(-1).itertuples(index=False, name=None), rows.index)
    sets = [set(own) for _, own in trials.groupby([rows["condition"], rows["generator"]])]
    common = set.intersection(*sets)
    if all(own == common for own in sets):
        return rows, ""
    if not common:
        return rows, (
            "The rows have no trial (support and seed) in common: each level is over the row's own."
        )
    return rows[trials.isin(common)], (
        f"Levels are over {counted(len(common), 'trial')} that every row has done; a difference "
        "is over all that its row and the first have done."
    )


def _compared(row: pd.Series) -> str:
    first, second = (condition_phrase(row[name]).rstrip(",") for name in ("condition", "baseline"))
    amount = counted(row["n_real"], "labelled image")
    if row.get("n_more_labels", 0) > 0:
        amount += f", {more_labels(row)} more behind the pairs"
    who = f", segmenter {row['segmenter']}" if row.get("segmenter") else ""
    if row.get("prompt", LEAK_FREE_PROMPT) != LEAK_FREE_PROMPT:
        who += f", {prompt_phrase(row['prompt'])}"
    return f"We compared {first} with {second}: {amount}{who}, tested on {row['test_cohort']}."


def _compared_choices(row: pd.Series) -> str:
    what, amount = condition_phrase(row["condition"]).rstrip(","), f"{row['n_real']:.0f}"
    return (
        f"We compared labelling {choosing_phrase(row, 'with labelling')}: {amount} of them, "
        f"{what}, tested on {row['test_cohort']}."
    )


def _came_out(row: pd.Series) -> str:
    measure = row.get("measure", "dice")
    name = "Dice" if measure == "dice" else "The HC error"
    found, change = verdict(row), size(row["mean"], measure=measure, sign=True)
    if found in ("raised", "lowered"):
        moved = "rose" if found == "raised" else "fell"
        is_gain = (found == "raised") == (measure == "dice")
        text = f"{name} {moved} by {size(abs(row['mean']), measure=measure)}"
        n_family, p = row.get("n_family", 1), row.get("p_holm", math.nan)
        if p >= _P_BELOW and row.get("role") != "primary" and n_family > 1:
            return f"{text}; after adjustment for {n_family} comparisons this is not shown."
        # Near zero the two can disagree: the interval is as skewed as the data.
        if p >= _P_BELOW:
            side = "above" if found == "raised" else "below"
            return f"{text}; its interval lies {side} zero, but with p {p:.3g} this is not shown."
        return f"{text}: a {'gain' if is_gain else 'loss'}."
    why = "; neither a gain nor a loss is shown"
    if is_too_small(row):
        surely = is_surely_small(row)
        why = ", less than what would matter" if surely else ", an estimate below what would matter"
    return f"{name} changed by {change}{why}."


def _how_sure(row: pd.Series) -> str:
    exams = counted(row["n_exams"], "test exam")
    if verdict(row) == "no interval":
        return f"{exams} {'gives' if row['n_exams'] == 1 else 'give'} no interval: no evidence yet."
    n_supports = row.get("n_supports", 1)
    over = f"{exams} and {counted(n_supports, 'draw')} of labelled images"
    if n_supports == 1:
        over = f"{exams}; other labelled images were not tried"
    return f"The {level_text(row)} interval runs from {interval(row)}, over {over}."
