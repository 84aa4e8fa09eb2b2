"""The images with labels that a stage reads: real ones, and unlabelled ones with a teacher's."""

from dataclasses import dataclass
from typing import Literal

from datamodules.ellipse import Ellipse
from datamodules.samples import Sample, content_hash_of, trimester
from experiments.stages.context import StageContext


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """An image with the label that a stage may know of it."""

    sample: Sample
    real_id: str
    """The real sample whose image it is."""
    ellipse: Ellipse
    """Of the label, in pixels of the image."""
    size_hw: tuple[int, int]
    content_hash: str
    """Of image and label."""

    @property
    def trimester(self) -> Literal[1, 2, 3] | None:
        """By the circumference of the label; None where the pixel size is not known."""
        return trimester(self.sample.hc_mm)


def labelled_images(context: StageContext, ids: list[str]) -> list[LabelledImage]:
    """The images of `ids`, and after them those of the input `pseudo`, where there is one."""
    found = [
        LabelledImage(
            sample=context.samples[sample_id],
            real_id=sample_id,
            ellipse=context.rows[sample_id].ellipse,
            size_hw=context.rows[sample_id].size_hw,
            content_hash=context.content[sample_id],
        )
        for sample_id in ids
    ]
    if "pseudo" not in context.node.upstream:
        return found
    pseudo = context.open_pairs("pseudo")
    for sample in pseudo.samples:
        pair = pseudo.pairs[sample.sample_id]
        found.append(
            LabelledImage(
                sample=sample,
                real_id=pair.image_of,
                ellipse=pair.ellipse,
                size_hw=context.rows[pair.image_of].size_hw,
                content_hash=content_hash_of(sample),
            )
        )
    return found
