"""Our numbers beside the paper's (arXiv 2506.23664).

The paper reports Dice at 256x256 under the jittered box, so ours is `dice_256` under that prompt.
Its panels are train cohort -> test cohort; a cohort that it did not test stands alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from datamodules.storage import write_atomic
from experiments.config.conditions import BOX_ALONE, condition_label, in_order
from experiments.config.paths import REFERENCE
from experiments.results.axes import AXES, axis_label, each_series, orders, series_label, shown_axes
from experiments.results.cells import cell_means
from experiments.results.figures import level_curves, level_names
from experiments.results.latex import latex_notes, latex_table
from experiments.results.panels import (
    Curve,
    Panel,
    condition_style,
    draw_panels,
    save_figure,
    series_style,
)
from experiments.results.rows import with_amounts
from experiments.results.text import bullets, markdown_table

_REFERENCE = REFERENCE / "paper_2506_23664.csv"
PAPER_CONDITIONS = {"baseline": "real", "weak": "weak", "strong": "strong"}
PAPER_CONDITIONS |= {"synthesis": "synthetic"}
"""The paper's condition to ours; its synthesis used a generator with 60 labels of its own."""
PAPER_STYLE = {"linestyle": ":", "linewidth": 1.0, "markerfacecolor": "white"}
"""Of the paper's curves: hollow."""
NOTES = [
    "Paper: arXiv 2506.23664, read off its figure by eye, about ±0.2 points; mean of five box "
    "draws of one trained model, SAM ViT-B, 20 epochs (20 steps at 5 images).",
    "Ours: Dice at 256x256 under the same jittered box, mean over test images; other test images, "
    "and the backbone and steps of this sweep. The difference compares two experiments, not two "
    "methods.",
    "The paper's figure holds no row for a box without an image; the score of ours comes from the "
    "prompt alone.",
]


def paper_reference() -> pd.DataFrame:
    """Read the paper's numbers: panel, condition (our names), n_real, dice in [0, 1].

    Source: the header of reference/paper_2506_23664.csv.
    """
    rows = pd.read_csv(_REFERENCE, comment="#")
    rows["condition"] = rows["condition"].map(PAPER_CONDITIONS)
    return rows


def compare_paper(results: pd.DataFrame, *, train_cohort: str = "HC18") -> pd.DataFrame:
    """Join our cells with the paper's of the same panel, condition and number of real images.

    Args:
        results: Rows of results.csv.
        train_cohort: What the sweep trained on: HC18 or ES in the paper's words.

    Returns:
        panel, condition, segmenter, generator, choice ("" where only the paper has a number),
        n_real, paper and ours (mean Dice at 256, per cent, NaN where one is missing), n_trials,
        n_exams. Panels that only the paper has are kept: they show what was not repeated.
    """
    rows = with_amounts(results)
    done = rows[(rows["status"] == "done") & (rows["prompt"] == "jittered_box")]
    panel = train_cohort.upper() + "->" + done["test_cohort"].astype(str).str.upper()
    done = done.assign(panel=panel)
    # Of a fraction the folds of a model have unequal counts.
    cell = ["panel", "condition", *AXES, "amount"]
    order = orders(done)
    ours = cell_means(done, ["dice_256_mean"], by=cell).sort_values(
        cell,
        kind="stable",
        key=lambda column: column.map(order.get(column.name, sorted(set(column))).index),
    )
    ours = ours.rename(columns={"dice_256_mean": "ours"})
    theirs = paper_reference().rename(columns={"dice": "paper"})
    theirs = theirs[theirs["panel"].str.startswith(f"{train_cohort.upper()}->")]
    joined = theirs.merge(ours, on=["panel", "condition", "n_real"], how="outer")
    joined[["paper", "ours"]] *= 100
    rank = joined["condition"].map(in_order(joined["condition"]).index)
    joined = joined.fillna(dict.fromkeys(AXES, "")).assign(rank=rank)
    joined = joined.sort_values(["panel", "rank", "n_real"], kind="stable", ignore_index=True)
    return joined[["panel", "condition", *AXES, "n_real", "paper", "ours", "n_trials", "n_exams"]]


def table_paper(compared: pd.DataFrame, *, deviations: Sequence[str] = ()) -> tuple[str, str]:
    """Write the comparison as Markdown and as LaTeX: two rows a condition, a column an amount.

    Box only needs no training image: its level is repeated in every column.
    """
    trained = compared[~compared["condition"].isin(BOX_ALONE)]
    counts, shown = sorted(trained["n_real"].unique()), shown_axes(compared)
    rows = []
    for (panel, condition), own in compared.groupby(["panel", "condition"], sort=False):
        theirs = own.drop_duplicates("n_real").set_index("n_real")["paper"].dropna()
        sources = [("paper", theirs, "")]
        for keys, part in each_series(own.dropna(subset=["ours"])):
            named = [axis_label(name, keys[name]) for name in shown if keys[name]]
            exams = f"{part['n_exams'].max():.0f}"
            sources.append((", ".join(["ours", *named]), part.set_index("n_real")["ours"], exams))
        head = {"panel": panel.replace("->", " to "), "condition": condition_label(condition)}
        for source, found, exams in sources:
            if condition in BOX_ALONE and len(found):
                found = pd.Series(found.iloc[0], index=counts)
            cells = {f"{n:.0f}": f"{found[n]:.1f}" if n in found else "" for n in counts}
            rows += [head | {"source": source, "exams": exams} | cells] if len(found) else []
    text = pd.DataFrame(rows)
    lines = markdown_table(text.replace("", "–"), left=["panel", "condition", "source"])
    known = set(paper_reference()["panel"])
    others = [panel for panel in dict.fromkeys(compared["panel"]) if panel not in known]
    alone = "another test set, which the paper has no number for; it stands beside the paper's "
    alone += "panels and is not compared with them."
    notes = [*NOTES, *(f"{name.replace('->', ' to ')}: {alone}" for name in others), *deviations]
    markdown = "\n".join([*lines, "", *bullets(notes), ""])
    caption = "Mean Dice (%) at 256x256 under the jittered box by real images, the paper's and ours"
    latex = latex_table(text, caption=caption, label="tab:paper")
    return markdown, "\n".join(
        ["% Needs \\usepackage{booktabs}.", latex.rstrip("\n"), *latex_notes(notes), ""]
    )


def figure_paper(compared: pd.DataFrame) -> Figure:
    """Draw the paper's Dice (hollow, dotted) and ours (filled) against real images."""
    common = {"order": orders(compared), "shown": shown_axes(compared)}
    parts = compared.groupby("panel", sort=False)
    return draw_panels([[_panel(rows, **common) for _, rows in parts]], share_y="all")


def _panel(rows: pd.DataFrame, *, order: Mapping, shown: Sequence[str]) -> Panel:
    rows = rows.rename(columns={"n_real": "x", "ours": "y"})
    lines, curves = rows[rows["x"] > 0], []
    levels = rows[rows["condition"].isin(BOX_ALONE)].dropna(subset=["y"])
    for condition in in_order(lines["condition"]):
        own = lines[lines["condition"] == condition]
        label, style = condition_label(condition), condition_style(condition)
        theirs = own.drop_duplicates("x").dropna(subset=["paper"]).assign(y=lambda r: r["paper"])
        if len(theirs):
            curves.append(Curve(label=f"{label}, paper", points=theirs, style=style | PAPER_STYLE))
        for keys, ours in each_series(own.dropna(subset=["y"])):
            label = f"{series_label(keys, shown=shown)}, ours"
            curves.append(Curve(label=label, points=ours, style=series_style(keys, order=order)))
    amounts = sorted(set(lines["x"]))
    title = [rows["panel"].iloc[0].replace("->", " → "), *level_names(levels, shown=shown)]
    return Panel(
        title="; ".join(title),
        curves=[*curves, *level_curves(levels, shown=shown)],
        x_label="real training images",
        y_label="Dice at 256x256, %",
        ticks={x: f"{x:.0f}" for x in amounts},
        is_log_x=len(amounts) > 1,
    )


def write_comparison(
    results: pd.DataFrame, folder: Path, *, train_cohort: str, deviations: Sequence[str] = ()
) -> bool:
    """Write table_paper.md, .tex, .csv and figure_paper.png, .pdf; `deviations` are footnotes.

    Returns:
        Whether anything was written: the paper must have trained on this cohort, and a trial of
        ours must have been scored under the jittered box.
    """
    compared = compare_paper(results, train_cohort=train_cohort)
    trained = compared[~compared["condition"].isin(BOX_ALONE)]
    if trained["paper"].isna().all() or trained["ours"].isna().all():
        return False
    markdown, latex = table_paper(compared, deviations=deviations)
    write_atomic(folder / "table_paper.md", markdown)
    write_atomic(folder / "table_paper.tex", latex)
    write_atomic(folder / "table_paper.csv", compared.to_csv(index=False))
    save_figure(figure_paper(compared), stem=folder / "figure_paper")
    return True
