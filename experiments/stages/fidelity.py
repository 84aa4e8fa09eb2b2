"""Fidelity and memorisation of a synthetic set, beside the same measures of real test images.

Every number of the synthetic set comes from the function that also measures the held-out real
images against the same training images: that second row is what a perfect generator would reach.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import wasserstein_distance

from experiments.stages.fidelity_sets import SPACES, FidelitySet, Measured, measure, nearest_pairs
from lightning_modules.fidelity import (
    chance_agreement,
    copy_threshold,
    intensity_statistics,
    kid,
    memorised_fraction,
    per_image_intensity,
    precision_recall_density_coverage,
)

MIN_IMAGES = 5
"""With fewer images in a set no distribution is compared."""
KID_SUBSETS = 100
KID_LARGEST_SUBSET = 100
LARGEST_K = 5
"""Neighbours for precision and its kin; fewer where a set has fewer than four times as many."""
MATCHED_DRAWS = 20
"""Random subsets over which precision and its kin are averaged, where sets differ in size."""
COPY_QUANTILE = 0.01
LEAK_QUANTILE = 0.95
NEAREST_PAIRS = 5
_NEIGHBOUR_MEASURES = ("precision", "recall", "density", "coverage")
_INTENSITY = "near the control; mean of the set (distance of its distribution to training)"


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
    notes: list[str] = []
    measured_train = measure(train, train=None, pixel_hw=pixel_hw)
    measured = {
        "synthetic": measure(synthetic, train=measured_train, pixel_hw=pixel_hw),
        "held_out": measure(held_out, train=measured_train, pixel_hw=pixel_hw),
    }
    settings = _settings(synthetic=synthetic, train=train, held_out=held_out, seed=seed)
    thresholds = _thresholds(measured["held_out"], measured_train)
    blocks = {}
    for name, item in {**measured, "train": measured_train}.items():
        label = name.replace("_", "-")
        blocks[name] = {
            "nearest": {space: _nearest(item, measured["held_out"], space) for space in SPACES},
            "agreement": _agreement(item, label=label, seed=seed, notes=notes),
            "contour_leak": _leak(item, thresholds["contour_leak"], label=label, notes=notes),
            "intensity": intensity_statistics(item.images),
        }
        if item is not measured_train:
            blocks[name] |= _against_train(
                item, measured_train, settings=settings, label=label, notes=notes
            )
    notes += _limits(measured, measured_train, settings=settings)
    summary = {
        "counts": {
            name: {"images": len(item), "exams": len(set(item.groups))}
            for name, item in (("synthetic", synthetic), ("train", train), ("held_out", held_out))
        },
        "settings": settings | {"pixel_hw": list(pixel_hw)},
        "synthetic_against_train": blocks["synthetic"],
        "real_test_against_train": blocks["held_out"],
        "train": blocks["train"],
        "thresholds": thresholds,
        "nearest_pairs": {
            space: {
                name: nearest_pairs(item, train, space=space, count=NEAREST_PAIRS)
                for name, item in measured.items()
            }
            for space in SPACES
        },
        "notes": notes,
    }
    return _json_safe(summary)


def fidelity_rows(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Turn a summary into text cells for a table.

    Args:
        summary: From `summarise_fidelity`, before or after a passage through JSON.

    Returns:
        Columns `measure`, `synthetic`, `real test (control)` and `reading direction`; a dash
        where nothing could be computed.
    """
    blocks = [summary["synthetic_against_train"], summary["real_test_against_train"]]
    counts = summary["counts"]
    rows = [
        [
            "images",
            str(counts["synthetic"]["images"]),
            f"{counts['held_out']['images']} of {counts['held_out']['exams']} exams",
            f"both against {counts['train']['images']} training images",
        ]
    ]
    for name, cell, direction in _table_rows(summary):
        rows.append([name, *(cell(block) for block in blocks), direction])
    columns = ["measure", "synthetic", "real test (control)", "reading direction"]
    return pd.DataFrame(rows, columns=columns)


def _settings(
    *, synthetic: FidelitySet, train: FidelitySet, held_out: FidelitySet, seed: int
) -> dict[str, Any]:
    """Sizes that both rows share; None where too few images are left to compare."""
    compared = [len(item) for item in (synthetic, held_out) if len(item) >= MIN_IMAGES]
    matched = min(compared) if compared and len(train) >= MIN_IMAGES else None
    smallest = None if matched is None else min(matched, len(train))
    return {
        "seed": seed,
        "k": None if smallest is None else min(LARGEST_K, max(1, smallest // 4)),
        "kid_subsets": KID_SUBSETS,
        "kid_subset_size": (
            None if smallest is None else max(2, min(KID_LARGEST_SUBSET, smallest // 2))
        ),
        "matched_images": matched,
        "copy_quantile": COPY_QUANTILE,
        "leak_quantile": LEAK_QUANTILE,
    }


def _thresholds(held_out: Measured, train: Measured) -> dict[str, Any]:
    """Limits that come from real images only."""
    leak = train.leak[np.isfinite(train.leak)]
    return {
        "copied": {
            space: copy_threshold(held_out.distances[space], quantile=COPY_QUANTILE)
            if _has_control(held_out, space)
            else None
            for space in SPACES
        },
        "contour_leak": (
            float(np.quantile(leak, LEAK_QUANTILE)) if len(leak) >= MIN_IMAGES else None
        ),
    }


def _has_control(held_out: Measured, space: str) -> bool:
    distances = held_out.distances[space]
    return len(distances) >= MIN_IMAGES and bool(np.isfinite(distances).all())


def _nearest(item: Measured, held_out: Measured, space: str) -> dict[str, Any]:
    """Distances to the nearest training images, and how many are those of copies."""
    distances = item.distances[space][np.isfinite(item.distances[space])]
    known = len(distances) > 0
    share = None
    if known and _has_control(held_out, space):
        share = memorised_fraction(distances, held_out.distances[space], quantile=COPY_QUANTILE)
    return {
        "median": float(np.median(distances)) if known else None,
        "p1": float(np.quantile(distances, 0.01)) if known else None,
        "copied_fraction": share,
        "copied_images": None if share is None else round(share * len(distances)),
        "images": len(distances),
    }


def _agreement(
    item: Measured, *, label: str, seed: int, notes: list[str]
) -> dict[str, float | None]:
    """Mean Dice of label and segmenter, and of a label and another image's label."""
    groups = item.source.groups
    agreement, chance = item.source.agreement, None
    if agreement is None or len(agreement) == 0:
        notes.append(f"{label}: no agreement with a segmenter was given")
    if len(groups) >= MIN_IMAGES and 2 * max(Counter(groups).values()) <= len(groups):
        dice = chance_agreement(item.masks, item.masks, seed=seed, groups=groups)
        chance = float(dice.mean())
    else:
        notes.append(f"{label}: too few images or exams for a chance level of agreement")
    known = agreement is not None and len(agreement) > 0
    return {"mean": float(np.mean(agreement)) if known else None, "chance": chance}


def _leak(
    item: Measured, threshold: float | None, *, label: str, notes: list[str]
) -> dict[str, float | None]:
    """Contour-leak scores of a set, and the share above what is usual of training images."""
    scores = item.leak[~np.isnan(item.leak)]
    if len(scores) < len(item.leak):
        missing = len(item.leak) - len(scores)
        notes.append(f"{label}: {missing} of {len(item.leak)} images have no contour-leak score")
    if len(scores) == 0:
        return dict.fromkeys(("median", "p5", "p95", "share_above_train"))
    # Without interpolation, because a score may be infinite.
    p5, median, p95 = np.percentile(scores, [5, 50, 95], method="nearest")
    share = None if threshold is None else float((scores > threshold).mean())
    return {"median": median, "p5": p5, "p95": p95, "share_above_train": share}


def _against_train(
    item: Measured, train: Measured, *, settings: dict[str, Any], label: str, notes: list[str]
) -> dict[str, Any]:
    """What compares two distributions."""
    found: dict[str, Any] = dict.fromkeys(("kid", *_NEIGHBOUR_MEASURES))
    found["intensity_distance"] = {"mean": None, "spread": None}
    few = min(len(item.source), len(train.source))
    if few < MIN_IMAGES:
        notes.append(
            f"{label} against train: {few} images in the smaller set, {MIN_IMAGES} are needed for "
            "KID, precision, recall, density, coverage and intensity distances"
        )
        return found
    mean, sd = kid(
        train.rows["features"],
        item.rows["features"],
        subsets=settings["kid_subsets"],
        subset_size=settings["kid_subset_size"],
        seed=settings["seed"],
    )
    found["kid"] = {"mean": mean, "sd": sd}
    found |= _matched_neighbours(item.rows["features"], train.rows["features"], settings)
    pairs = zip(per_image_intensity(item.images), per_image_intensity(train.images), strict=True)
    distances = [float(wasserstein_distance(ours, theirs)) for ours, theirs in pairs]
    found["intensity_distance"] = {"mean": distances[0], "spread": distances[1]}
    return found


def _matched_neighbours(
    rows: np.ndarray, train_rows: np.ndarray, settings: dict[str, Any]
) -> dict[str, float]:
    """Precision and its kin over subsets of the size that both compared sets have."""
    matched = settings["matched_images"]
    rng = np.random.default_rng(settings["seed"])
    draws = [
        precision_recall_density_coverage(
            train_rows, rows[rng.choice(len(rows), matched, replace=False)], k=settings["k"]
        )
        for _ in range(MATCHED_DRAWS if matched < len(rows) else 1)
    ]
    return dict(zip(_NEIGHBOUR_MEASURES, np.mean(draws, axis=0).tolist(), strict=True))


def _limits(
    measured: Mapping[str, Measured], train: Measured, *, settings: dict[str, Any]
) -> list[str]:
    """What a reader has to know of the numbers, given their counts."""
    notes = []
    count, dimension = len(train.source), train.rows["features"].shape[1]
    matched, held_out = settings["matched_images"], len(measured["held_out"].source)
    if matched is not None and dimension > min(count, matched):
        notes.append(
            f"features have {dimension} dimensions for {count} training and {matched} compared "
            "images: precision, recall, density and coverage mean something only beside the "
            "control"
        )
    if train.source.features_flipped is None:
        notes.append(
            "features of mirrored training images were not given: copies of them count "
            "in pixels only"
        )
    if not all(_has_control(measured["held_out"], space) for space in SPACES):
        notes.append(
            f"copied fraction: {held_out} held-out images against {count} training images, at "
            f"least {MIN_IMAGES} and 1 are needed for its threshold"
        )
    elif held_out * settings["copy_quantile"] < 1:
        notes.append(
            f"copied fraction: with {held_out} held-out images the first percentile lies at the "
            "smallest of their distances"
        )
    return notes


def _json_safe(value: Any) -> Any:
    """Plain Python values; None for what is not finite."""
    if isinstance(value, dict):
        return {key: _json_safe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json_safe(item) for item in value]
    if isinstance(value, float):  # numpy's float64 as well
        return float(value) if math.isfinite(value) else None
    return value


def _table_rows(summary: Mapping[str, Any]) -> list[tuple[str, Callable[[Any], str], str]]:
    """Name, cell of a block and way to read it of each measure."""
    near = "higher is better; the control is what a generator that does not copy can reach"
    rows: list[tuple[str, Callable[[Any], str], str]] = [
        ("KID", _kid, "lower is better; 0 for the training distribution, can be negative"),
        *((name, partial(_value, name=name), near) for name in _NEIGHBOUR_MEASURES),
    ]
    for space in SPACES:
        limit = _number(summary["thresholds"]["copied"][space])
        above = f"above the control's 1 % means copying; nearer than {limit} to a training image"
        below = "below the control means copying; median (first percentile)"
        if space == "features":
            above += "; a blurred copy is not found so, but by pixels"
        rows += [
            (f"copied, by {space}", partial(_copied, space=space), above),
            (f"distance to training, by {space}", partial(_distance, space=space), below),
        ]
    limit = _number(summary["thresholds"]["contour_leak"])
    height, width = summary["settings"]["pixel_hw"]
    at_size = f"at {height}x{width} px"
    return [
        *rows,
        ("label agreement", _agreement_cell, "higher is better; Dice (chance: another's label)"),
        ("contour leak", _leak_cell, f"near the control; median (share above {limit}), {at_size}"),
        ("brightness", partial(_intensity, name="mean"), f"{_INTENSITY}, {at_size}"),
        ("contrast", partial(_intensity, name="spread"), f"{_INTENSITY}, {at_size}"),
    ]


def _value(block: Mapping[str, Any], *, name: str) -> str:
    return _number(block[name])


def _kid(block: Mapping[str, Any]) -> str:
    found = block["kid"]
    return "–" if found is None else f"{_number(found['mean'])} ± {_number(found['sd'])}"


def _copied(block: Mapping[str, Any], *, space: str) -> str:
    found = block["nearest"][space]
    if found["copied_fraction"] is None:
        return "–"
    share = 100 * found["copied_fraction"]
    return f"{share:.1f} % ({found['copied_images']} of {found['images']})"


def _distance(block: Mapping[str, Any], *, space: str) -> str:
    found = block["nearest"][space]
    return _with_aside(found["median"], _number(found["p1"]))


def _agreement_cell(block: Mapping[str, Any]) -> str:
    found = block["agreement"]
    return _with_aside(found["mean"], f"chance {_number(found['chance'])}")


def _leak_cell(block: Mapping[str, Any]) -> str:
    found = block["contour_leak"]
    share = found["share_above_train"]
    return _with_aside(found["median"], "–" if share is None else f"{100 * share:.0f} %")


def _intensity(block: Mapping[str, Any], *, name: str) -> str:
    found = block["intensity"][name]
    return _with_aside(found["mean"], _number(block["intensity_distance"][name]))


def _with_aside(value: float | None, aside: str) -> str:
    return "–" if value is None else f"{_number(value)} ({aside})"


def _number(value: float | None) -> str:
    """Three significant digits; a dash for what is not known."""
    return "–" if value is None else f"{value:.3g}"
