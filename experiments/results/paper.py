"""Our numbers beside the paper's (arXiv 2506.23664).

The paper reports Dice at 256x256 under the jittered box, so ours is `dice_256` under that prompt.
Its panels are train cohort -> test cohort; a cohort that it did not test stands alone.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datamodules.storage import write_atomic
from experiments.config.paths import REFERENCE
from experiments.config.schema import ExperimentConfig
from experiments.results.figure_style import (
    RC_PARAMS,
    condition_style,
    ordered,
    save_figure,
    shared_legend,
)
from experiments.results.tables import CONDITION_LABELS, escape_latex, latex_table

_REFERENCE = REFERENCE / "paper_2506_23664.csv"
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
_BACKBONES = {
    "lite": "LiteMedSAM (frozen TinyViT encoder at 256x256)",
    "tiny": "a small random network for tests, whose numbers mean nothing",
}
_VIT_B = ("vit_b", "sam_vit_b")


def deviations(config: ExperimentConfig) -> list[str]:
    """Say where a recipe leaves the paper's protocol, a sentence a point.

    Args:
        config: The recipe; what it shares with the paper is not named.

    Returns:
        Sentences in the order training, data, synthesis, evaluation.

    Source: the method section of arXiv 2506.23664 and the authors' published code.
    """
    return [
        *_training_deviations(config),
        *_data_deviations(config),
        *_synthesis_deviations(config),
        *_evaluation_deviations(config),
    ]


def _training_deviations(config: ExperimentConfig) -> list[str]:
    segmenter, notes = config.segmenter, []
    if segmenter.backbone not in _VIT_B:
        name = _BACKBONES.get(segmenter.backbone, segmenter.backbone)
        notes.append(f"Backbone: ours is {name}; the paper's is SAM ViT-B.")
    if segmenter.tuning != "decoder":
        notes.append(
            f"Tuning: ours is {segmenter.tuning}; the paper trains the mask decoder alone."
        )
    if segmenter.epochs is None:
        notes.append(
            f"Steps: we take {_count(segmenter.steps, 'step')} of batch {segmenter.batch_size} "
            "for every amount and condition; the paper takes 20 epochs of batch 5, which is 20 "
            "steps at 5 real images and 2,000 with 495 synthetic ones beside them."
        )
    elif (segmenter.epochs, segmenter.batch_size) != (20, 5):
        notes.append(
            f"Steps: we take {segmenter.epochs} epochs of batch {segmenter.batch_size}; the paper "
            "takes 20 epochs of batch 5."
        )
    if (segmenter.lr_schedule, segmenter.warmup_steps) != ("constant", 0):
        notes.append(
            f"Learning rate: ours is {segmenter.learning_rate:g} with warm-up and "
            f"{segmenter.lr_schedule} after it, by AdamW; the paper's is a constant 1e-05, by Adam."
        )
    elif segmenter.learning_rate != 1e-5:
        notes.append(f"Learning rate: ours is {segmenter.learning_rate:g}; the paper's is 1e-05.")
    if set(segmenter.train_prompts) != {"jittered_box"}:
        named = " and ".join(dict.fromkeys(segmenter.train_prompts))
        notes.append(f"Prompts in training: ours are {named}; the paper's is jittered_box alone.")
    if segmenter.jitter_max_px != 19:
        notes.append(
            f"Box jitter: we push each side by 0 to {segmenter.jitter_max_px} px; the paper by 0 "
            "to 19 px."
        )
    if {"weak", "strong"} & set(config.sweep.condition):
        n_views = config.augment.n_views
        most = config.augment.max_per_trial
        limit = "" if most is None else f" ({most} in a trial, at least 2 an image)"
        views = (
            f" We draw from {n_views} embedded views of each image{limit}; the paper transforms "
            "afresh."
        )
        notes.append(
            "Augmentation: we take the box from the transformed mask; the paper's code leaves it "
            f"where it was before.{views if n_views is not None else ''}"
        )
    notes.append(
        "Masks: we resize without loss of area; the paper's code truncates a bicubic resize, which "
        "takes 2 % off the head."
    )
    return notes


def _data_deviations(config: ExperimentConfig) -> list[str]:
    split, cohorts = config.split, config.data.test_cohorts
    if split.file is not None and split.n_folds == 1:
        part = "the test part of a published split"
    elif split.n_folds > 1:
        part = f"every exam once, over {split.n_folds} folds,"
    elif split.test < 1:
        part = f"{100 * split.test:g} % of the images, as whole exams,"
    else:
        part = f"{_count(split.test, 'image')}, as whole exams,"
    tested = f"{part} of the folder that is trained on"
    if cohorts:
        names = ", ".join(Path(folder).name for folder in cohorts)
        cohort = "cohort" if len(cohorts) == 1 else "cohorts"
        tested += f", and all images of the external {cohort} {names}"
    return [
        f"Test images: we test {tested}; the paper tests 597 of ES and 125 of AF, none of HC18.",
        "Split: we deal whole exams with their near-duplicates and draw real images stratified by "
        "trimester; the paper draws single images.",
    ]


def _synthesis_deviations(config: ExperimentConfig) -> list[str]:
    synthesis, is_imported = config.synthesis, config.synthesis.folder is not None
    if not any(name.startswith("synthetic") for name in config.sweep.condition):
        return []
    if "synthetic" in config.sweep.condition and is_imported:
        count = synthesis.folder_labels
        labels = "an unknown number of labelled images"
        if count is not None:
            labels = _count(count, "labelled image")
        made = f"our pairs are imported from a folder, whose maker saw {labels}"
    elif synthesis.generator == "stable_diffusion":
        stable = config.stable_diffusion
        height, width = stable.size_hw
        how = {
            "sd_in_channel": "outlines extracted from its pictures",
            "sd_mask": "each labelled by the ellipse that it was conditioned on",
        }[stable.route]
        labels = _count(synthesis.generator_count, "labelled image")
        made = (
            f"ours is Stable Diffusion with LoRA of rank {stable.lora_rank} at {height}x{width} on "
            f"{labels} ({stable.route}), and draws "
            f"{_count(synthesis.n_candidates, 'candidate')}, {how}"
        )
    else:
        height, width = config.generator.size_hw
        labels = _count(synthesis.generator_count, "labelled image")
        made = (
            f"ours is a pixel diffusion model of {height}x{width}, fitted from scratch on {labels},"
            f" and draws {_count(synthesis.n_candidates, 'candidate')}, each labelled by the "
            "ellipse that it was conditioned on"
        )
    gate = "ours are not checked"
    if config.gate.enabled and not is_imported:
        gate = "ours pass an automatic gate"
    share = f"{100 * config.segmenter.synthetic_share:g} %"
    mixture = [
        f"Mixture: {share} of each of our batches is synthetic; the paper adds its pairs to the "
        "real ones."
    ]
    return [
        f"Generator: {made}; the paper's is Stable Diffusion 1.5 with LoRA at 512x512 on 60 "
        "labelled images (20 a trimester), with outlines extracted from its pictures.",
        f"Check of the synthetic pairs: {gate}; the paper's are corrected by hand, and 495 of 500 "
        "are kept.",
        *(mixture if config.segmenter.epochs is None else []),
    ]


def _evaluation_deviations(config: ExperimentConfig) -> list[str]:
    draws = _count(config.evaluation.jitter_draws, "box draw")
    supports, seeds = len(config.sweep.support), len(config.sweep.seed)
    return [
        f"Box draws: we take {draws} of each image, the same for every model, and average over "
        "them; the paper takes five fresh ones and gives their spread as the standard deviation.",
        f"Models a point: we train {_count(supports * seeds, 'model')} "
        f"({_count(supports, 'support')}, {_count(seeds, 'seed')}); the paper trains one.",
    ]


def _count(number: float, noun: str) -> str:
    return f"{number:.0f} {noun}" + ("" if number == 1 else "s")


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


def table_paper(compared: pd.DataFrame, *, deviations: Sequence[str] = ()) -> tuple[str, str]:
    """Write the comparison as Markdown and as LaTeX: two rows a condition, a column an amount.

    Box only needs no training image: its level is repeated in every column.

    Args:
        compared: From `compare_paper`; not empty.
        deviations: Sentences of `deviations`, footnotes below the general ones.
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
    notes = [*NOTES, *_other_test_sets(compared), *deviations]
    markdown = "\n".join([*lines, "", *(f"- {_escape(note)}" for note in notes), ""])
    caption = "Mean Dice (%) at 256x256 under the jittered box by real images, the paper's and ours"
    latex = latex_table(text, caption=caption, label="tab:paper")
    below = [f"\\noindent {escape_latex(note)}\\par" for note in notes]
    return markdown, "\n".join([latex.rstrip("\n"), *below, ""])


def _escape(text: str) -> str:
    return text.replace("*", "\\*").replace("_", "\\_").replace("|", "\\|")


def _other_test_sets(compared: pd.DataFrame) -> list[str]:
    """Name the panels that are ours alone."""
    known = set(paper_reference()["panel"])
    own = [panel for panel in dict.fromkeys(compared["panel"]) if panel not in known]
    return [
        f"{panel.replace('->', ' to ')}: another test set, which the paper has no number for; it "
        "stands beside the paper's panels and is not compared with them."
        for panel in own
    ]


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


def write_comparison(
    results: pd.DataFrame, folder: Path, *, train_cohort: str, deviations: Sequence[str] = ()
) -> bool:
    """Write table_paper.md, .tex, .csv and figure_paper.png, .pdf beside the paper's panels.

    Args:
        results: Rows of results.csv.
        folder: Where the files go.
        train_cohort: What the sweep trained on.
        deviations: Footnotes from `deviations`.

    Returns:
        Whether anything was written: the paper must have trained on this cohort, and a trial of
        ours must have been scored under the jittered box. A test cohort that the paper does not
        know is a panel of its own.
    """
    compared = compare_paper(results, train_cohort=train_cohort)
    trained = compared[compared["condition"] != "box_only"]
    if trained["paper"].isna().all() or trained["ours"].isna().all():
        return False
    markdown, latex = table_paper(compared, deviations=deviations)
    write_atomic(folder / "table_paper.md", markdown)
    write_atomic(folder / "table_paper.tex", latex)
    write_atomic(folder / "table_paper.csv", compared.to_csv(index=False))
    save_figure(figure_paper(compared), stem=folder / "figure_paper")
    return True
