"""Our numbers beside the paper's (arXiv 2506.23664).

The paper reports Dice at 256x256 under the jittered box, so ours is `dice_256` under that prompt.
Its panels are train cohort -> test cohort; a cohort that it did not test stands alone.
"""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datamodules.storage import write_atomic
from experiments.figure_style import (
    RC_PARAMS,
    condition_style,
    ordered,
    save_figure,
    shared_legend,
)
from experiments.tables import CONDITION_LABELS, latex_table

_REFERENCE = Path(__file__).parent / "reference" / "paper_2506_23664.csv"
PAPER_CONDITIONS = {
    "baseline": "real",
    "weak": "weak",
    "strong": "strong",
    "synthesis": "synthetic",
}
"""The paper's condition to ours; its synthesis used a generator with 60 labels of its own."""
NOTES = [
    "Paper: arXiv 2506.23664, read off its figure by eye, about ±0.2 points; mean of five box "
    "draws of one trained model, SAM ViT-B, 20 epochs (20 steps at 5 images).",
    "Ours: Dice at 256x256 under the same jittered box, mean over test images; other test images, "
    "and the backbone and steps of this sweep. The difference compares two experiments, not two "
    "methods.",
    "The paper's figure holds no row for a box without an image; ours scores what the prompt alone "
    "gives away.",
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
        results: Rows of results.csv; several trials of a cell are averaged.
        train_cohort: What the sweep trained on: HC18 or ES in the paper's words.

    Returns:
        panel, condition, n_real, paper and ours (mean Dice at 256, per cent, NaN where one is
        missing), n_trials, n_exams; panels that only the paper has under this train cohort are
        kept, so that the reader sees what was not repeated.
    """
    done = results[(results["status"] == "done") & (results["prompt"] == "jittered_box")]
    panel = train_cohort.upper() + "->" + done["test_cohort"].astype(str).str.upper()
    ours = (
        done.assign(panel=panel)
        .groupby(["panel", "condition", "n_real"], as_index=False)
        .agg(
            ours=("dice_256_mean", "mean"),
            n_trials=("trial_id", "nunique"),
            n_exams=("n_exams", "max"),
        )
    )
    theirs = paper_reference().rename(columns={"dice": "paper"})
    theirs = theirs[theirs["panel"].str.startswith(f"{train_cohort.upper()}->")]
    joined = theirs.merge(ours, on=["panel", "condition", "n_real"], how="outer")
    joined[["paper", "ours"]] *= 100
    order = list(CONDITION_LABELS)
    rank = joined["condition"].map(lambda name: order.index(name) if name in order else len(order))
    joined = joined.assign(rank=rank).sort_values(["panel", "rank", "n_real"], ignore_index=True)
    return joined.drop(columns="rank")[
        ["panel", "condition", "n_real", "paper", "ours", "n_trials", "n_exams"]
    ]


def table_paper(compared: pd.DataFrame) -> tuple[str, str]:
    """Write the comparison as Markdown and as LaTeX: two rows a condition, a column an amount.

    Box only needs no training image: its level is repeated in every column.

    Args:
        compared: From `compare_paper`; not empty.
    """
    trained = compared[compared["condition"] != "box_only"]
    counts = sorted(trained["n_real"].unique())
    rows = []
    for (panel, condition), own in compared.groupby(["panel", "condition"], sort=False):
        for source in ("paper", "ours"):
            found = own.set_index("n_real")[source].dropna()
            if found.empty:
                continue
            exams = own["n_exams"].max() if source == "ours" else float("nan")
            head = {
                "panel": panel.replace("->", " to "),
                "condition": CONDITION_LABELS.get(condition, condition),
                "source": source,
                "exams": "" if pd.isna(exams) else f"{exams:.0f}",
            }
            if condition == "box_only":
                found = pd.Series(found.iloc[0], index=counts)
            cells = {f"{n:.0f}": f"{found[n]:.1f}" if n in found else "" for n in counts}
            rows.append(head | cells)
    text = pd.DataFrame(rows)
    lines = ["| " + " | ".join(text.columns) + " |", "|" + " --- |" * len(text.columns)]
    lines += ["| " + " | ".join(row.replace("", "–")) + " |" for _, row in text.iterrows()]
    markdown = "\n".join([*lines, "", *(f"- {note}" for note in NOTES), ""])
    caption = "Mean Dice (%) at 256x256 under the jittered box by real images, the paper's and ours"
    return markdown, latex_table(text, caption=caption, label="tab:paper")


def figure_paper(compared: pd.DataFrame) -> Figure:
    """Draw the paper's Dice (hollow, dotted) and ours (filled) against real images.

    Args:
        compared: From `compare_paper`; not empty.
    """
    panels = list(dict.fromkeys(compared["panel"]))
    with matplotlib.rc_context(RC_PARAMS):
        figure = Figure(figsize=(1.2 + 4.1 * len(panels), 4.2))
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, panel in zip(axes, panels, strict=True):
            own = compared[compared["panel"] == panel]
            _draw_panel(axis, own)
            axis.set_title(panel.replace("->", " → "), fontsize=10, loc="left")
            axis.set_xlabel("real training images")
        axes[0].set_ylabel("Dice at 256x256, %")
        shared_legend(figure, axes)
        return figure


def _draw_panel(axis: Axes, rows: pd.DataFrame) -> None:
    lines = rows[rows["n_real"] > 0]
    for condition in ordered(lines["condition"]):
        own = lines[lines["condition"] == condition]
        style = condition_style(condition)
        label = CONDITION_LABELS.get(condition, condition)
        theirs, ours = own.dropna(subset=["paper"]), own.dropna(subset=["ours"])
        if len(theirs):
            axis.plot(
                theirs["n_real"],
                theirs["paper"],
                label=f"{label}, paper",
                linestyle=":",
                linewidth=1.0,
                markersize=5,
                markerfacecolor="white",
                **style,
            )
        if len(ours):
            axis.plot(ours["n_real"], ours["ours"], label=f"{label}, ours", markersize=5, **style)
    for level in rows.loc[rows["condition"] == "box_only", "ours"].dropna():
        axis.axhline(level, color="#444444", linestyle=(0, (5, 3)), linewidth=1.1)
        axis.text(
            0.99,
            level,
            f"box only (no image), ours {level:.1f}",
            transform=axis.get_yaxis_transform(),
            ha="right",
            va="bottom",
            fontsize=8,
            color="#444444",
        )
    if len(lines):
        _count_axis(axis, np.unique(lines["n_real"]))


def _count_axis(axis: Axes, counts: np.ndarray) -> None:
    axis.set_xscale("log")
    shown = [int(n) for k, n in enumerate(counts) if k == 0 or n / counts[k - 1] > 1.3]
    axis.set_xticks(shown, [str(n) for n in shown])
    axis.set_xticks([], minor=True)


def write_comparison(results: pd.DataFrame, folder: Path, *, train_cohort: str) -> bool:
    """Write table_paper.md, .tex and figure_paper.png, .pdf where the paper has a number to ours.

    Args:
        results: Rows of results.csv.
        folder: Where the files go.
        train_cohort: What the sweep trained on.

    Returns:
        Whether anything was written: a panel and amount must stand on both sides.
    """
    compared = compare_paper(results, train_cohort=train_cohort)
    shared = compared[["paper", "ours"]].notna().all(axis=1)
    if not shared.any():
        return False
    markdown, latex = table_paper(compared)
    write_atomic(folder / "table_paper.md", markdown)
    write_atomic(folder / "table_paper.tex", latex)
    save_figure(figure_paper(compared), stem=folder / "figure_paper")
    return True
