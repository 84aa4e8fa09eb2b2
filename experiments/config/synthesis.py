"""Settings of synthetic pairs, of their gate and of augmented views. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datamodules.allowed import above, at_least, between
from datamodules.config import AUGMENT_EXTRAS
from experiments.config.conditions import Augmentation
from experiments.config.names import check_known
from lightning_modules.generators.pixel.config import SamplerConfig
from lightning_modules.prompt_protocol import PromptProtocol


@dataclass(kw_only=True)
class SynthesisConfig:
    """Which generator is fitted on what, and how many pairs it makes."""

    generator: str = "pixel"
    """Generator of a sweep whose `sweep.generator` is empty: `pixel`, from scratch;
    `stable_diffusion`, a pretrained model with LoRA; or a block of `generators`."""
    generator_count: int = 60
    """Labelled images that the generator of `synthetic` sees (the paper: 60)."""
    generator_support: int = 0
    """Which images those are: the first ones of this support."""
    n_candidates: int = 200
    """Pairs to draw before the gate."""
    image_hw: tuple[int, int] = (540, 800)
    """Height and width of the stored pairs, px; the generator's squash is undone to this size."""
    folder: str | None = None
    """Folder of pairs made elsewhere (image/, mask/) to use instead of a generator."""
    folder_labels: int | None = None
    """Labelled images that the maker of `folder` used; null prints as unknown."""
    fidelity: bool = True
    """Whether gated sets are measured against real images; it embeds them and the test images."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """How the pixel generator is sampled; Stable Diffusion has a sampler of its own."""
    balance_sizes: bool = False
    """Draw the outlines of small, middle and large heads (terciles of those known) equally
    often."""

    def __post_init__(self) -> None:
        self.image_hw = tuple(self.image_hw)
        at_least(1).check(self, "n_candidates", "generator_count", section="synthesis")
        between(0, 10**9).check(self, "generator_support", section="synthesis")
        at_least(32).check(self, "image_hw", section="synthesis", hint="each side, px")
        at_least(0).check(self, "folder_labels", section="synthesis", hint="for unknown")


@dataclass(kw_only=True)
class SelfTrainingConfig:
    """Which labels of a teacher are kept."""

    min_agreement: float = 0.96
    """The teacher's mask must agree with the ellipse fitted to it, and with its mask of a second
    view, at least this well (Dice)."""
    view_zoom: float = 0.8
    """Size of the image in that second view, as a share of its own."""

    def __post_init__(self) -> None:
        between(0, 1).check(self, "min_agreement", section="self_training")
        above(0, at_most=1).check(self, "view_zoom", section="self_training")


@dataclass(kw_only=True)
class GateConfig:
    """Which candidates are refused. Limits come from the generator's own images."""

    enabled: bool = True
    """Whether candidates are refused at all; what is measured is recorded either way."""
    judge: dict[str, Any] = field(default_factory=dict)
    """The segmenter that judges, fitted on exactly the generator's images: a block as in
    `segmenters`. Empty is the section `segmenter` with its decoder tuned."""
    judge_augment: Augmentation = "none"
    """How strongly the judge's training images are augmented."""
    prompt: PromptProtocol = "whole_image"
    """Prompt of that segmenter, where it takes one."""
    agreement_quantile: float = 0.05
    """Dice between label and segmenter must reach this quantile of the same Dice on the real ones,
    less the slack below."""
    agreement_slack: float = 0.1
    """Taken off that quantile: the segmenter was fitted on those images."""
    min_agreement: float | None = None
    """A limit for that Dice to use instead of the quantile."""
    intensity_quantile: float = 0.01
    """Mean and spread must lie within these quantiles of the real ones, with the slack below."""
    intensity_slack: float = 0.25
    """Widening of the intensity range on either side, as a share of its width."""
    copy_quantile: float = 0.99
    """A near-copy is more similar to a real image than this quantile of the similarities of real
    images to their nearest neighbours of other exams."""
    copy_min_correlation: float = 0.7
    """Below this similarity nothing is a near-copy, however few real images set the quantile."""

    def __post_init__(self) -> None:
        quantiles = ("agreement_quantile", "intensity_quantile", "copy_quantile")
        shares = ("agreement_slack", "copy_min_correlation", "min_agreement")
        between(0, 1).check(self, *quantiles, *shares, section="gate")
        at_least(0).check(self, "intensity_slack", section="gate")


@dataclass(kw_only=True)
class AugmentConfig:
    """Augmented views of the real images, embedded once."""

    n_views: int | None = 8
    """Views an image has in `weak` and `strong`: itself and n_views - 1 augmented ones, embedded
    once. null: every draw is augmented and encoded anew."""
    max_per_trial: int | None = 400
    """Most views of a trial's images together: of many images each has fewer than n_views, but at
    least 2. null: no limit."""
    moderate_end: float = 0.0
    """Share of a fit's steps, at its end, in which strong augmentation is about half as strong. Not
    with embedded views, which are drawn in any order."""
    extra: list[str] = field(default_factory=list)
    """Operations, of `AUGMENT_EXTRAS`, that strong augmentation has besides, in students, teachers
    and judges alike. Not with embedded views."""

    def views_at(self, n_images: int) -> int | None:
        """Views each image of a trial with so many has, itself among them; None: drawn anew."""
        if self.n_views is None or self.max_per_trial is None:
            return self.n_views
        return min(self.n_views, max(2, self.max_per_trial // max(1, n_images)))

    def augmented_views(self, amounts: Sequence[int]) -> int:
        """Different augmented views, images themselves not counted, that nested amounts need."""
        total, before = 0, 0
        for n_images in sorted(set(amounts)):
            total += (n_images - before) * ((self.views_at(n_images) or 1) - 1)
            before = n_images
        return total

    def __post_init__(self) -> None:
        hint = "the image and one augmented view; null augments every draw anew"
        at_least(2).check(self, "n_views", section="augment", hint=hint)
        between(0, 1).check(self, "moderate_end", section="augment")
        check_known(self.extra, known=AUGMENT_EXTRAS, key="augment.extra")
        at_least(2).check(self, "max_per_trial", section="augment", hint="for no limit")
