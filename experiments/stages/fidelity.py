"""Fidelity and memorisation of a synthetic set, beside the same measures of real test images.

Every number of the synthetic set comes from the function that also measures the held-out real
images against the same training images: that second row is what a perfect generator would reach.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from experiments.plan.stage_table import value_at
from experiments.stages.fidelity_sets import (
    COPY_QUANTILE,
    MIN_IMAGES,
    NEIGHBOURS,
    FidelitySet,
    MeasuredSet,
)
from lightning_modules.fidelity import copy_threshold, intensity_statistics

SPACES = ("features", "pixels")
"""Where copies are looked for: the segmenter's features, and the pixels of small images."""
KID_SUBSETS = 100
"""Subsets of KID, and the images of the largest one."""
LARGEST_K = 5
"""Neighbours for precision and its kin; fewer where a set has fewer than four times as many."""
LEAK_QUANTILE = 0.95


def summarise_fidelity(
    *,
    synthetic: FidelitySet,
    train: FidelitySet,
    held_out: FidelitySet,
    seed: int,
    pixel_hw: tuple[int, int] = (64, 96),
) -> dict[str, Any]:
    """Measure a synthetic set and, as its control, held-out real images against training.

    Real images are larger and sharper than what a generator at 64x96 makes, even after it was
    upsampled: intensities, contour leaks, chance levels and pixel distances are therefore taken
    of all images squashed to one small size. Features see the images as the segmenter does, blur
    included: 14 training images merely passed through 64x96 were farther from themselves (0.44)
    than other exams are (0.16): features found none of these copies, pixels 20 of 20 such.
    To compare content alone, give real sets that went through the generator's size.

    Args:
        synthetic: The generated pairs that are judged.
        train: The real images that the generator was fitted on.
        held_out: Real images of other exams.
        seed: Of subsets and shuffles; the same input and seed give the same numbers.
        pixel_hw: The common size, px: best the size at which the generator worked.

    Returns:
        A JSON-safe dict (None, never nan): `counts`; `settings`; the equal blocks
        `synthetic_against_train` and `real_test_against_train`; `train`, whose distances leave a
        training image's own exam out; `thresholds`; `nearest_pairs`; `notes`, which give the
        reason of each None and the limits of what was computed.

    Raises:
        ValueError: A held-out exam is also a training exam, features of different spaces, or a
            feature that is not finite.
    """
    shared = set(held_out.groups) & set(train.groups)
    if shared:
        raise ValueError(f"exam {min(shared)} is in the training and in the held-out set")
    sets = {"synthetic": synthetic, "train": train, "held_out": held_out}
    of_train = MeasuredSet(train, label="train", pixel_hw=pixel_hw)
    compared = {
        name: MeasuredSet(sets[name], label=label, pixel_hw=pixel_hw, train=of_train)
        for name, label in (("synthetic", "synthetic"), ("held_out", "held-out"))
    }
    settings = _settings(sets, seed=seed)
    control = {
        space: found
        for space, (found, _) in compared["held_out"].nearest.items()
        if len(found) >= MIN_IMAGES and np.isfinite(found).all()
    }
    leak = of_train.leak[np.isfinite(of_train.leak)]
    # Limits come from real images only.
    thresholds = {
        "copied": dict.fromkeys(SPACES)
        | {s: copy_threshold(found, quantile=COPY_QUANTILE) for s, found in control.items()},
        "contour_leak": np.quantile(leak, LEAK_QUANTILE) if len(leak) >= MIN_IMAGES else None,
    }
    measured, notes, blocks = {**compared, "train": of_train}, [], {}
    for name, item in measured.items():
        blocks[name] = {
            "nearest": {space: item.copies(space, control.get(space)) for space in SPACES},
            "agreement": item.agreement(seed),
            "difficulty": item.difficulty(),
            "contour_leak": item.leaks(thresholds["contour_leak"]),
            "intensity": intensity_statistics(item.images),
            **(item.against(of_train, settings) if name in compared else {}),
        }
        notes += item.notes
    has_control, matched = len(control) == len(SPACES), settings["matched_images"]
    notes += _limits(sets, has_control=has_control, matched=matched)
    summary = {
        "counts": {
            name: {"images": len(item), "exams": len(set(item.groups))}
            for name, item in sets.items()
        },
        "settings": settings | {"pixel_hw": pixel_hw},
        "synthetic_against_train": blocks["synthetic"],
        "real_test_against_train": blocks["held_out"],
        "train": blocks["train"],
        "thresholds": thresholds,
        "nearest_pairs": {
            space: {name: item.pairs(space, train) for name, item in compared.items()}
            for space in SPACES
        },
        "notes": notes,
    }
    # JSON's own parser tells what is not finite.
    return json.loads(json.dumps(summary, default=float), parse_constant=lambda _: None)


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


def _settings(sets: Mapping[str, FidelitySet], *, seed: int) -> dict[str, Any]:
    """Sizes that both rows share; None where too few images are left to compare."""
    n_train = len(sets["train"])
    compared = [len(sets[name]) for name in ("synthetic", "held_out")]
    matched = min((n for n in compared if n >= MIN_IMAGES), default=0)
    n = min(matched, n_train) if n_train >= MIN_IMAGES else 0
    return {
        "seed": seed,
        "k": min(LARGEST_K, max(1, n // 4)) if n else None,
        "kid_subsets": KID_SUBSETS,
        "kid_subset_size": max(2, min(KID_SUBSETS, n // 2)) if n else None,
        "matched_images": matched if n else None,
        "copy_quantile": COPY_QUANTILE,
        "leak_quantile": LEAK_QUANTILE,
    }


def _limits(
    sets: Mapping[str, FidelitySet], *, has_control: bool, matched: int | None
) -> list[str]:
    """What a reader has to know of the numbers, given their counts."""
    n_train, n_control = len(sets["train"]), len(sets["held_out"])
    dimension, notes = sets["train"].features.shape[1], []
    if matched is not None and dimension > min(n_train, matched):
        notes.append(
            f"features have {dimension} dimensions for {n_train} training and {matched} compared "
            "images: precision, recall, density and coverage mean something only beside the "
            "control"
        )
    if not has_control:
        notes.append(
            f"copied fraction: {n_control} held-out images against {n_train} training images, at "
            f"least {MIN_IMAGES} and 1 are needed for its threshold"
        )
    elif n_control * COPY_QUANTILE < 1:
        notes.append(
            f"copied fraction: with {n_control} held-out images the first percentile lies at the "
            "smallest of their distances"
        )
    return notes
