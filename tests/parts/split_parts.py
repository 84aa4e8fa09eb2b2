"""Units to split: made at random, and in HC18's proportions."""

import random

from datamodules.splits import Unit

HC18_IMAGES = {1: 165, 2: 693, 3: 141}
"""Images of HC18's training set by trimester."""


def unit(exam, frame=1, *, stratum=2, group=None):
    return Unit(
        sample_id=f"{exam}_{frame}",
        group_id=group or exam,
        exam_id=exam,
        frame=frame,
        stratum=stratum,
    )


def random_units(seed):
    """10 to 60 exams of 1 to 5 frames; some exams share a group; strata 0 to 3."""
    rng = random.Random(seed)
    units, group = [], ""
    for number in range(rng.randint(10, 60)):
        exam, stratum = f"{number:03d}", rng.choice([0, 1, 2, 2, 3])
        if not group or rng.random() > 0.2:
            group = f"g{number:03d}"
        for frame in range(1, rng.choice([1, 1, 1, 2, 3, 5]) + 1):
            units.append(unit(exam, frame, stratum=stratum, group=group))
    return units


def hc18_like():
    """999 images in HC18's proportions of trimesters, exams of 1 to 5 frames."""
    units, number = [], 0
    for stratum, n_images in HC18_IMAGES.items():
        left = n_images
        while left:
            frames = min(left, (1, 3, 1, 2, 1, 5, 1, 2)[number % 8])
            units += [unit(f"{number:03d}", f, stratum=stratum) for f in range(1, frames + 1)]
            left, number = left - frames, number + 1
    return units
