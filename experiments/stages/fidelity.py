"""Fidelity and memorisation of a synthetic set, beside the same measures of real test images.

Every number of the synthetic set comes from the function that also measures the held-out real
images against the same training images: that second row is what a perfect generator would reach.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.stages.fidelity_sets import (
    COPY_QUANTILE,
    MIN_IMAGES,
    FidelitySet,
    MeasuredSet,
)
from experiments.stages.fidelity_table import SPACES
from lightning_modules.fidelity import copy_threshold, intensity_statistics

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
