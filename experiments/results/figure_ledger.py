"""The ledger: Dice against every labelled image behind a row, ours and the paper's.

A row with synthetic pairs has used the labels of its generator and its gate as well. Counted so,
a curve that stood above the other may only stand further to the right.
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from datamodules.storage import write_atomic
from experiments.config.conditions import condition_label, in_order
from experiments.results import axes
from experiments.results.figures import amount_panel, curve_points
from experiments.results.panels import Curve, Panel, condition_style, draw_panels, save_figure
from experiments.results.paper import PAPER_CONDITIONS, PAPER_STYLE, paper_reference
from experiments.results.text import bullets, markdown_table

PAPER_GENERATOR_LABELS = 60
"""Labelled images that the paper's generator saw: 20 of each trimester."""
PAPER_PANELS = ("HC18->ES", "HC18->AF")
_BASELINE, _SYNTHESIS = PAPER_CONDITIONS["baseline"], PAPER_CONDITIONS["synthesis"]
_DASHES = dict(zip(PAPER_PANELS, ("-", "--"), strict=True))
NOTES = [
    "total labels: distinct labelled images behind a row, those of its segmenter, of its generator "
    "and gate, and of validation where they chose anything.",
    "Paper: arXiv 2506.23664, read off its figure by eye, about ±0.2 points; Dice at 256x256 under "
    "a box taken from the reference. Its synthesis is counted with the "
    f"{PAPER_GENERATOR_LABELS} labels of its generator; images that both used would be counted "
    "twice, and what chose its 495 of 500 pairs is not counted.",
    "Ours: Dice at the original size; other test images, backbone and prompt than the paper's. "
    "Compare the shapes of the two panels, not their heights.",
]


def paper_ledger() -> pd.DataFrame:
    """Re-index the paper's baseline and synthesis by total labels.

    Returns:
        panel, condition (our names), n_real, n_generator_labels, n_total_labels, dice (per cent).
    """
    rows = paper_reference()
    rows = rows[rows["panel"].isin(PAPER_PANELS) & rows["condition"].isin([_BASELINE, _SYNTHESIS])]
    generator = (rows["condition"] == _SYNTHESIS) * PAPER_GENERATOR_LABELS
    return rows.assign(
        n_generator_labels=generator,
        n_total_labels=rows["n_real"] + generator,
        dice=100 * rows["dice"],
    ).reset_index(drop=True)


def _our_ledger(
    results: pd.DataFrame, per_image: pd.DataFrame | None
) -> tuple[pd.DataFrame, list[str], str]:
    """Rows of `curve_points` by total labels, NaN where unknown, of the first cohort and prompt;
    the axes of which they hold several values; and where that is, in words.
    """
    points = curve_points(results, per_image=per_image, x="n_total_labels")
    if points.empty:
        return points, [], ""
    cohort, prompt, _ = next(axes.each_place(results[results["status"] == "done"]))
    points = points[(points["test_cohort"] == cohort) & (points["prompt"] == prompt)]
    shown = axes.shown_axes(points)
    return points, shown, f"{cohort}, {axes.prompt_label(prompt)}"


def figure_ledger(results: pd.DataFrame, *, per_image: pd.DataFrame | None = None) -> Figure:
    """Draw Dice against total labels: ours per condition, and the paper's curves re-indexed."""
    points, shown, where = _our_ledger(results, per_image)
    title = f"ours: {where or 'no trial has finished'}"
    unknown = in_order(points.loc[~axes.is_control(points) & points["x"].isna(), "condition"])
    if unknown:
        title += f"; not drawn, total labels unknown: {', '.join(map(condition_label, unknown))}"
    order = axes.orders(points)
    ours = amount_panel(points, title=title, order=order, shown=shown, x="n_total_labels")
    return draw_panels([[ours, _paper_panel()]], size_in=(4.7, 4.0))


def _paper_panel() -> Panel:
    rows = paper_ledger().rename(columns={"n_total_labels": "x", "dice": "y"})
    curves = [
        Curve(
            label=f"{condition_label(condition)}, paper {panel.replace('->', ' → ')}",
            points=own,
            style=condition_style(condition) | PAPER_STYLE | {"linestyle": _DASHES[panel]},
        )
        for (panel, condition), own in rows.groupby(["panel", "condition"], sort=False)
    ]
    return Panel(
        title=f"paper: synthesis counted with its generator's {PAPER_GENERATOR_LABELS} labels",
        curves=curves,
        x_label="labelled images in all",
        y_label="Dice at 256x256, %",
        ticks={x: f"{x:.0f}" for x in sorted(set(rows["x"]))},
        is_log_x=True,
    )


def table_ledger(results: pd.DataFrame, per_image: pd.DataFrame | None = None) -> str:
    """Write the numbers behind the figure as Markdown, in the order of their total labels."""
    ours, shown, where = _our_ledger(results, per_image)
    rows = []
    for _, row in ours.iterrows():
        interval = f" [{row['low']:.1f}, {row['high']:.1f}]" if pd.notna(row["low"]) else ""
        total = "unknown" if pd.isna(row["x"]) else f"{row['x']:.0f}"
        label = axes.series_label(row, shown=shown)
        rows.append((f"ours, {where}", label, total, f"{row['y']:.1f}{interval}"))
    for _, row in paper_ledger().sort_values("n_total_labels", kind="stable").iterrows():
        label, source = condition_label(row["condition"]), row["panel"].replace("->", " to ")
        rows.append((f"paper, {source}", label, str(row["n_total_labels"]), f"{row['dice']:.1f}"))
    text = pd.DataFrame(rows, columns=["source", "condition", "total labels", "Dice %"])
    lines = markdown_table(text, left=["source", "condition"])
    return "\n".join([*lines, "", *bullets([*_verdicts(), *NOTES]), ""])


def _verdicts() -> list[str]:
    """Set the paper's smallest synthesis beside its baselines of about as many labels."""
    said, rows = [], paper_ledger()
    for panel in PAPER_PANELS:
        own = rows[rows["panel"] == panel]
        base = own[own["condition"] == _BASELINE].set_index("n_total_labels")["dice"]
        least = own[own["condition"] == _SYNTHESIS].sort_values("n_total_labels").iloc[0]
        total = least["n_total_labels"]
        below, above = base.index[base.index <= total].max(), base.index[base.index > total].min()
        said.append(
            f"Paper, {panel.replace('->', ' to ')}: synthesis with {least['n_real']} + "
            f"{least['n_generator_labels']} = {total} labels has {least['dice']:.1f} %; its "
            f"baseline has {base[below]:.1f} % with {below} and {base[above]:.1f} % with {above}."
        )
    return said


def write_ledger(results: pd.DataFrame, folder: Path, *, per_image: pd.DataFrame) -> None:
    """Write figure_ledger.png, figure_ledger.pdf and table_ledger.md."""
    save_figure(figure_ledger(results, per_image=per_image), stem=folder / "figure_ledger")
    write_atomic(folder / "table_ledger.md", table_ledger(results, per_image))
