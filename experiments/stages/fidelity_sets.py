"""Sets of images whose fidelity is judged, and what is measured of each beside the training set."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import wasserstein_distance

from datamodules.geometry import image_to_frame, mask_to_frame, place
from experiments.stages.fidelity_table import NEIGHBOURS
from experiments.stages.gate import fingerprints, mirrored
from lightning_modules.fidelity import (
    chance_agreement,
    contour_leak_score,
    kid,
    memorised_fraction,
    nearest_distance,
    per_image_intensity,
    precision_recall_density_coverage,
)

MIN_IMAGES = 5
"""With fewer images in a set no distribution is compared."""
MATCHED_DRAWS = 20
"""Random subsets over which precision and its kin are averaged, where sets differ in size."""
COPY_QUANTILE = 0.01
NEAREST_PAIRS = 5


@dataclass(frozen=True, kw_only=True)
class FidelitySet:
    """Images of one origin and what is known of each; all sequences have one entry an image."""

    sample_ids: Sequence[str]
    groups: Sequence[str]
    """Exam of each image; a synthetic image is a group of its own."""
    images: Sequence[np.ndarray]
    """uint8 (H, W), any sizes. Read once, in order: a sequence that loads on demand will do."""
    masks: Sequence[np.ndarray]
    """uint8 (H, W) in {0, 1}, of their images' sizes; likewise."""
    features: np.ndarray
    """float32 (N, D), the pooled image embeddings of a segmenter."""
    agreement: Sequence[float]
    """Dice between each label and what a segmenter sees in the image."""
    cross_entropy: Sequence[float]
    """Of that segmenter's prediction against each label, the mean over the image's pixels."""
    features_flipped: np.ndarray | None = None
    """(N, D) of the images mirrored left to right; used of the training set only."""

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            if values is not None and len(values) != len(self):
                raise ValueError(f"FidelitySet: {len(values)} {name} for {len(self)} sample_ids")

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
        self.source, self.label = source, label
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
        self.rows = {"features": np.asarray(source.features), "pixels": prints}
        self.with_mirrored = dict(self.rows)
        flipped = {"features": source.features_flipped, "pixels": mirrored(prints)}
        self.nearest: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        """Distance to the nearest training image and its row; from N_train on it is mirrored."""
        for space, extra in flipped.items():
            if extra is not None:
                self.with_mirrored[space] = np.concatenate([self.rows[space], extra])
            reference, groups = (train or self).with_mirrored[space], {}
            # Never by group else: a pair made from an exam's label must not be spared that exam.
            if train is None:
                copies = [*source.groups] * (1 if extra is None else 2)
                groups = {"query_groups": source.groups, "training_groups": copies}
            self.nearest[space] = nearest_distance(self.rows[space], reference, **groups)

    def pairs(self, space: str, train: FidelitySet) -> list[dict[str, Any]]:
        """The images that are nearest to a training image, nearest first."""
        distances, rows = self.nearest[space]
        return [
            {
                "sample_id": self.source.sample_ids[row],
                "train_id": train.sample_ids[nearest % len(train)],
                "mirrored": nearest >= len(train),
                "distance": distances[row],
            }
            for row in np.argsort(distances, kind="stable")[:NEAREST_PAIRS]
            if (nearest := int(rows[row])) >= 0
        ]

    def copies(self, space: str, control: np.ndarray | None) -> dict[str, Any]:
        """Distances to the nearest training images, and how many are those of copies."""
        distances = self.nearest[space][0]
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
        mean = np.mean(self.source.agreement) if len(groups) else None
        return {"mean": mean, "chance": chance}

    def difficulty(self) -> dict[str, float | None]:
        """How hard the segmenter finds the set's images: mean and median of its cross-entropy."""
        found = self.source.cross_entropy
        if len(found) == 0:
            return dict.fromkeys(("mean", "median"))
        return {"mean": np.mean(found), "median": np.median(found)}

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
        share = None if threshold is None else float((scores > threshold).mean())
        return {"median": median, "p5": p5, "p95": p95, "share_above_train": share}

    def against(self, train: "MeasuredSet", settings: dict[str, Any]) -> dict[str, Any]:
        """What compares two distributions; precision and its kin over sets of one size."""
        few = min(len(self.source), len(train.source))
        if few < MIN_IMAGES:
            self.notes.append(
                f"{self.label} against train: {few} images in the smaller set, {MIN_IMAGES} are "
                "needed for KID, precision, recall, density, coverage and intensity distances"
            )
            nothing = dict.fromkeys(("mean", "spread"))
            return {**dict.fromkeys(("kid", *NEIGHBOURS)), "intensity_distance": nothing}
        ours, theirs = self.rows["features"], train.rows["features"]
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
        found = zip(
            per_image_intensity(self.images), per_image_intensity(train.images), strict=True
        )
        apart = [wasserstein_distance(*pair) for pair in found]
        return {
            "kid": {"mean": mean, "sd": sd},
            **dict(zip(NEIGHBOURS, np.mean(draws, axis=0), strict=True)),
            "intensity_distance": dict(zip(("mean", "spread"), apart, strict=True)),
        }
