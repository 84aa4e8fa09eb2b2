"""Fidelity of a synthetic set as a table for people. Torch-free."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from experiments.plan.stage_table import value_at

SPACES = ("features", "pixels")
"""Where copies are looked for: the segmenter's features, and the pixels of small images."""
NEIGHBOURS = ("precision", "recall", "density", "coverage")


def fidelity_rows(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Turn a summary into text cells for a table; a dash where nothing could be computed."""
    blocks = [summary["synthetic_against_train"], summary["real_test_against_train"]]
    counts = summary["counts"]
    images = [
        "images",
        str(counts["synthetic"]["images"]),
        f"{counts['held_out']['images']} of {counts['held_out']['exams']} exams",
        f"both against {counts['train']['images']} training images",
    ]
    rows = [
        [name, *(_cell(block, template, keys) for block in blocks), direction]
        for name, template, keys, direction in _table(summary)
    ]
    columns = ["measure", "synthetic", "real test (control)", "reading direction"]
    return pd.DataFrame([images, *rows], columns=columns)


def _table(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Name, template of a cell, keys of its numbers in a block, and way to read it, by measure."""
    limits = summary["thresholds"]
    known = "higher is better; the control is what a generator that does not copy can reach"
    kid_reads = "lower is better; 0 for the training distribution, can be negative"
    below = "below the control means copying; median (first percentile)"
    one, two = "{:.3g}", "{:.3g} ({:.3g})"
    rows = [("KID", "{:.3g} ± {:.3g}", "kid.mean kid.sd", kid_reads)]
    rows += [(name, one, name, known) for name in NEIGHBOURS]
    for space in SPACES:
        at, of = f"nearest.{space}", f"by {space}"
        above = "above the control's 1 % means copying; nearer than "
        above += f"{_number(limits['copied'][space])} to a training image"
        above += "; a blurred copy is not found so, but by pixels" if space == "features" else ""
        copied = f"{at}.copied_fraction {at}.copied_images {at}.images"
        rows.append((f"copied, {of}", "{:.1%} ({} of {})", copied, above))
        rows.append((f"distance to training, {of}", two, f"{at}.median {at}.p1", below))
    at_size = "at {}x{} px".format(*summary["settings"]["pixel_hw"])
    agrees = "higher is better; Dice (chance: another's label)"
    chance = "agreement.mean agreement.chance"
    rows.append(("label agreement", "{:.3g} (chance {:.3g})", chance, agrees))
    hard = "below the control means that the pairs teach little that the student does not know; "
    hard += "aim: at least the control; cross-entropy of the judge, mean (median); training images "
    hard += _cell(summary["train"], two, "difficulty.mean difficulty.median")
    rows.append(("difficulty", two, "difficulty.mean difficulty.median", hard))
    leaks = f"near the control; median (share above {_number(limits['contour_leak'])}), {at_size}"
    share = "contour_leak.median contour_leak.share_above_train"
    rows.append(("contour leak", "{:.3g} ({:.0%})", share, leaks))
    near = "near the control; mean of the set (distance of its distribution to training)"
    for name, key in (("brightness", "mean"), ("contrast", "spread")):
        keys = f"intensity.{key}.mean intensity_distance.{key}"
        rows.append((name, two, keys, f"{near}, {at_size}"))
    return rows


def _cell(block: Mapping[str, Any], template: str, keys: str) -> str:
    """Numbers of a block as text; a dash for what is not known."""
    found = [value_at(block, key) for key in keys.split()]
    if found[0] is None:
        return "–"
    text = template.format(*(math.nan if value is None else value for value in found))
    return text.replace("nan%", "–").replace("nan", "–").replace("%", " %")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
