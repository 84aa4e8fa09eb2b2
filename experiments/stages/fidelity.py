"""Fidelity and memorisation of a synthetic set, beside the same measures of real test images.

Every number of the synthetic set comes from the function that also measures the held-out real
images against the same training images: that second row is what a perfect generator would reach.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import wasserstein_distance

from datamodules.geometry import image_to_frame, mask_to_frame, place
from experiments.stages.fidelity_table import NEIGHBOURS, SPACES
from experiments.stages.gate import fingerprints, mirrored
from lightning_modules.fidelity import (
    chance_agreement,
    contour_leak_score,
    copy_threshold,
    intensity_statistics,
    kid,
    memorised_fraction,
    nearest_distance,
    per_image_intensity,
    precision_recall_density_coverage,
)

MIN_IMAGES = 5
"""With fewer images in a set no distribution is compared."""
KID_SUBSETS = 100
"""Subsets of KID, and the images of the largest one."""
LARGEST_K = 5
"""Neighbours for precision and its kin; fewer where a set has fewer than four times as many."""
MATCHED_DRAWS = 20
"""Random subsets over which precision and its kin are averaged, where sets differ in size."""
COPY_QUANTILE, LEAK_QUANTILE = 0.01, 0.95
NEAREST_PAIRS = 5


@dataclass(frozen=True, kw_only=True)
class FidelitySet:
    """Images of one origin and what is known of each; all sequences have one entry an image."""

    sample_ids: Sequence[str]
    groups: Sequence[str]
    """Exam of each image; a synthetic image is a group of its own."""
    images: Sequence[np.ndarray]
    """uint8 (H, W), any sizes."""
    masks: Sequence[np.ndarray]
    """uint8 (H, W) in {0, 1}, of their images' sizes."""
    features: np.ndarray
    """float32 (N, D), the pooled image embeddings of a segmenter."""
    agreement: Sequence[float]
    """Dice between each label and what a segmenter sees in the image."""
    cross_entropy: Sequence[float]
    """Of that segmenter's prediction against each label, the mean over the image's pixels."""
    features_flipped: np.ndarray | None = None
    """(N, D) of the images mirrored left to right; used of the training set only."""

    def __len__(self) -> int:
        return len(self.sample_ids)


class MeasuredSet:
    """A set at the common small size, with its distances to training by space.

    Notes call it `label`. Without `train` it is the training set itself.
    """

    def __init__(
        self,
        source: FidelitySet,
        *,
        label: str,
        pixel_hw: tuple[int, int],
        train: "MeasuredSet | None" = None,
    ) -> None:
        self.source, self.label, self.train = source, label, train or self
        self.notes: list[str] = []
        self.images: list[np.ndarray] = []
        self.masks: list[np.ndarray] = []
        for image, mask in zip(source.images, source.masks, strict=True):
            placement = place(image.shape, frame_hw=pixel_hw, mode="squash")
            self.images.append(image_to_frame(image, placement))
            self.masks.append(mask_to_frame(mask, placement))
        # nan and infinity are left in.
        self.leak = np.array(list(map(contour_leak_score, self.images, self.masks)), dtype=float)
        prints = fingerprints(self.images)
        self.with_mirrored: dict[str, np.ndarray] = {}
        self.nearest: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        """Distance to the nearest training image and its row; from N_train on it is mirrored."""
        for space, rows, flipped in (
            ("features", source.features, source.features_flipped),
            ("pixels", prints, mirrored(prints)),
        ):
            both = rows if flipped is None else np.concatenate([rows, flipped])
            self.with_mirrored[space], groups = both, {}
            # Never by group else: a pair made from an exam's label must not be spared that exam.
            if train is None:
                copies = [*source.groups] * (len(both) // len(rows))
                groups = {"query_groups": source.groups, "training_groups": copies}
            self.nearest[space] = nearest_distance(rows, self.train.with_mirrored[space], **groups)

    def pairs(self, space: str) -> list[dict[str, Any]]:
        """The images that are nearest to a training image, nearest first."""
        (distances, rows), train = self.nearest[space], self.train.source
        return [
            {
                "sample_id": self.source.sample_ids[row],
                "train_id": train.sample_ids[rows[row] % len(train)],
                "mirrored": bool(rows[row] >= len(train)),
                "distance": distances[row],
            }
            for row in np.argsort(distances, kind="stable")[:NEAREST_PAIRS]
        ]

    def copies(self, space: str, control: np.ndarray | None) -> dict[str, Any]:
        """Distances to the nearest training images, and how many are those of copies."""
        distances = self.nearest[space][0]
        # A training image has none where all are of its exam.
        distances = distances[np.isfinite(distances)]
        n, share = len(distances), None
        if n and control is not None:
            share = memorised_fraction(distances, control, quantile=COPY_QUANTILE)
        return {
            "median": np.median(distances) if n else None,
            "p1": np.quantile(distances, 0.01) if n else None,
            "copied_fraction": share,
            "copied_images": None if share is None else round(share * n),
            "images": n,
        }

    def agreement(self, seed: int) -> dict[str, float | None]:
        """Mean Dice of label and segmenter, and of a label and another image's label."""
        groups, chance = self.source.groups, None
        if len(groups) >= MIN_IMAGES and 2 * max(Counter(groups).values()) <= len(groups):
            chance = chance_agreement(self.masks, self.masks, seed=seed, groups=groups).mean()
        else:
            self.notes.append(
                f"{self.label}: too few images or exams for a chance level of agreement"
            )
        return {"mean": np.mean(self.source.agreement), "chance": chance}

    def leaks(self, threshold: float | None) -> dict[str, float | None]:
        """Contour-leak scores of a set, and the share above what is usual of training images."""
        scores = self.leak[~np.isnan(self.leak)]
        missing = len(self.leak) - len(scores)
        if missing:
            self.notes.append(
                f"{self.label}: {missing} of {len(self.leak)} images have no contour-leak score"
            )
        if len(scores) == 0:
            return dict.fromkeys(("median", "p5", "p95", "share_above_train"))
        # Without interpolation, because a score may be infinite.
        p5, median, p95 = np.percentile(scores, [5, 50, 95], method="nearest")
        share = None if threshold is None else (scores > threshold).mean()
        return {"median": median, "p5": p5, "p95": p95, "share_above_train": share}

    def against_train(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What compares two distributions; precision and its kin over sets of one size."""
        few = min(len(self.source), len(self.train.source))
        if few < MIN_IMAGES:
            self.notes.append(
                f"{self.label} against train: {few} images in the smaller set, {MIN_IMAGES} are "
                "needed for KID, precision, recall, density, coverage and intensity distances"
            )
            nothing = dict.fromkeys(("mean", "spread"))
            return {**dict.fromkeys(("kid", *NEIGHBOURS)), "intensity_distance": nothing}
        ours, theirs = self.source.features, self.train.source.features
        mean, sd = kid(
            theirs,
            ours,
            subsets=settings["kid_subsets"],
            subset_size=settings["kid_subset_size"],
            seed=settings["seed"],
        )
        matched, rng = settings["matched_images"], np.random.default_rng(settings["seed"])
        draws = [
            precision_recall_density_coverage(
                theirs, ours[rng.choice(len(ours), matched, replace=False)], k=settings["k"]
            )
            for _ in range(MATCHED_DRAWS if matched < len(ours) else 1)
        ]
        intensities = map(per_image_intensity, (self.images, self.train.images))
        apart = map(wasserstein_distance, *intensities)
        return {
            "kid": {"mean": mean, "sd": sd},
            **dict(zip(NEIGHBOURS, np.mean(draws, axis=0), strict=True)),
            "intensity_distance": dict(zip(("mean", "spread"), apart, strict=True)),
        }


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
        ValueError: Features of different spaces, or a feature that is not finite.
    """
    sets = {"synthetic": synthetic, "train": train, "held_out": held_out}
    of_train = MeasuredSet(train, label="train", pixel_hw=pixel_hw)
    ours = MeasuredSet(synthetic, label="synthetic", pixel_hw=pixel_hw, train=of_train)
    real = MeasuredSet(held_out, label="held-out", pixel_hw=pixel_hw, train=of_train)
    settings = _settings(len(synthetic), len(train), len(held_out), seed=seed)
    # Limits come from real images only.
    control, copied = dict.fromkeys(SPACES), dict.fromkeys(SPACES)
    if len(held_out) >= MIN_IMAGES:
        control = {space: real.nearest[space][0] for space in SPACES}
        copied = {s: copy_threshold(control[s], quantile=COPY_QUANTILE) for s in SPACES}
    leak, leak_limit = of_train.leak[np.isfinite(of_train.leak)], None
    if len(leak) >= MIN_IMAGES:
        leak_limit = np.quantile(leak, LEAK_QUANTILE)
    blocks = [
        {
            "nearest": {space: item.copies(space, control[space]) for space in SPACES},
            "agreement": item.agreement(seed),
            "difficulty": {
                "mean": np.mean(item.source.cross_entropy),
                "median": np.median(item.source.cross_entropy),
            },
            "contour_leak": item.leaks(leak_limit),
            "intensity": intensity_statistics(item.images),
        }
        for item in (ours, real, of_train)
    ]
    summary = {
        "counts": {
            name: {"images": len(item), "exams": len(set(item.groups))}
            for name, item in sets.items()
        },
        "settings": settings | {"pixel_hw": pixel_hw},
        "synthetic_against_train": blocks[0] | ours.against_train(settings),
        "real_test_against_train": blocks[1] | real.against_train(settings),
        "train": blocks[2],
        "thresholds": {"copied": copied, "contour_leak": leak_limit},
        "nearest_pairs": {
            space: {"synthetic": ours.pairs(space), "held_out": real.pairs(space)}
            for space in SPACES
        },
        "notes": [
            *(note for item in (ours, real, of_train) for note in item.notes),
            *_limits(train, n_control=len(held_out), matched=settings["matched_images"]),
        ],
    }
    # JSON's own parser tells what is not finite.
    return json.loads(json.dumps(summary, default=float), parse_constant=lambda _: None)


def _settings(n_synthetic: int, n_train: int, n_held_out: int, *, seed: int) -> dict[str, Any]:
    """Sizes that both rows share; None where too few images are left to compare."""
    matched = min((n for n in (n_synthetic, n_held_out) if n >= MIN_IMAGES), default=0)
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


def _limits(train: FidelitySet, *, n_control: int, matched: int | None) -> list[str]:
    """What a reader has to know of the numbers, given their counts."""
    n_train, dimension, notes = len(train), train.features.shape[1], []
    if matched is not None and dimension > min(n_train, matched):
        notes.append(
            f"features have {dimension} dimensions for {n_train} training and {matched} compared "
            "images: precision, recall, density and coverage mean something only beside the "
            "control"
        )
    if n_control < MIN_IMAGES:
        notes.append(
            f"copied fraction: {n_control} held-out images, and {MIN_IMAGES} are needed for its "
            "threshold"
        )
    elif n_control * COPY_QUANTILE < 1:
        notes.append(
            f"copied fraction: with {n_control} held-out images the first percentile lies at the "
            "smallest of their distances"
        )
    return notes
