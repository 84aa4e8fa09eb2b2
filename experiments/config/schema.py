"""The schema of a recipe. Torch-free, so that a wrong key is refused at once."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from datamodules.allowed import above, at_least, between
from datamodules.config import DataConfig, SplitConfig
from datamodules.config_outline import ExtractorConfig
from datamodules.errors import InputError
from experiments.config.running import SlurmConfig, StoreConfig, TrainerConfig, WandbConfig
from experiments.config.statistics import StatisticsConfig
from lightning_modules.generators.pixel.config import GeneratorConfig, SamplerConfig
from lightning_modules.generators.stable_diffusion.config import StableDiffusionConfig
from lightning_modules.prompt_protocol import PromptProtocol
from lightning_modules.segmenters.sam.config import SegmenterConfig
from lightning_modules.segmenters.unet.config import UnetConfig

Condition = Literal[
    "real",
    "real_repeated",
    "weak",
    "strong",
    "warp",
    "phantom",
    "synthetic",
    "synthetic_same_budget",
    "synthetic_same_budget_strong",
    "real_resized",
    "synthetic_no_gate",
    "synthetic_random_subset",
    "unet",
]
Prompt = Literal["whole_image", "predicted_box", "jittered_box", "tight_box"]
Control = Literal["box_only", "mean_mask", "zero_shot"]
GeneratorKind = Literal["pixel", "stable_diffusion"]
# Conditions that fit no generator of their own budget and take none: no axis for its seed.
WITHOUT_PAIRS = ("real", "weak", "strong", "unet")
WITHOUT_GENERATOR = (*WITHOUT_PAIRS, "real_repeated", "warp", "phantom")

AXES = ("condition", "real_count", "real_fraction", "support", "seed", "generator_seed", "fold")
"""Axes of the grid that one trial is named by."""


@dataclass(kw_only=True)
class SynthesisConfig:
    """Which generator is fitted on what, and how many pairs it makes."""

    generator: GeneratorKind = "pixel"
    """`pixel`: from scratch, set by `generator`. `stable_diffusion`: a pretrained model with LoRA,
    set by `stable_diffusion`, whose base model is yours to bring."""
    generator_count: int = 60
    """Labelled images that the generator of `synthetic` sees (the paper: 60)."""
    generator_support: int = 0
    """Which images those are: the first ones of this support."""
    n_candidates: int = 200
    """Pairs to draw before the gate."""
    image_hw: tuple[int, int] = (540, 800)
    """Height and width of the stored pairs, px; the generator's squash is undone to this size."""
    folder: str | None = None
    """Folder of somebody else's pairs (image/, mask/) to use instead of a generator."""
    folder_labels: int | None = None
    """Labelled images that the maker of `folder` used; null prints as unknown."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """How the pixel generator is sampled; Stable Diffusion has a sampler of its own."""

    def __post_init__(self) -> None:
        self.image_hw = tuple(self.image_hw)
        at_least(1).check(self, "n_candidates", "generator_count", section="synthesis")
        at_least(32).check(self, "image_hw", section="synthesis", hint="each side, px")
        at_least(0).check(self, "folder_labels", section="synthesis", hint="for unknown")


@dataclass(kw_only=True)
class GateConfig:
    """Which candidates are refused. Limits come from the generator's own images."""

    enabled: bool = True
    """Whether candidates are refused at all; what is measured is recorded either way."""
    prompt: PromptProtocol = "whole_image"
    """Prompt of the segmenter that judges, which was fitted on exactly the generator's images."""
    agreement_quantile: float = 0.05
    """Dice between label and segmenter must reach this quantile of the same Dice on the real ones,
    less the slack below."""
    agreement_slack: float = 0.1
    """Taken off that quantile: the segmenter was fitted on those images, and knows few the best."""
    min_agreement: float | None = None
    """A limit for that Dice to use instead of the quantile."""
    intensity_quantile: float = 0.01
    """Mean and spread must lie within these quantiles of the real ones, with the slack below."""
    intensity_slack: float = 0.25
    """Widening of the intensity range on either side, as a share of its width."""
    copy_quantile: float = 0.99
    """A candidate more similar to a real image than this quantile of the similarities between
    each real image and its nearest neighbour of another exam is a near-copy."""
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
    """Views an image has in `weak` and `strong`: itself and n_views - 1 augmented ones. A draw of
    the training takes one by a hash of (seed, draw). null: every draw is augmented and encoded
    anew."""
    max_per_trial: int | None = 400
    """Views that a trial's images have together: with many images each has fewer than n_views, but
    at least 2. null: no limit."""

    def views_at(self, n_images: int) -> int | None:
        """Views each image of a trial with so many has, itself among them; None: drawn anew."""
        if self.n_views is None or self.max_per_trial is None:
            return self.n_views
        return min(self.n_views, max(2, self.max_per_trial // max(1, n_images)))

    def augmented_views(self, amounts: Sequence[int]) -> int:
        """Different augmented views, images themselves not counted, that nested amounts need.

        The images of an amount are among those of any larger one, and the views of a larger amount
        are among those of any smaller one.
        """
        total, before = 0, 0
        for n_images in sorted(set(amounts)):
            total += (n_images - before) * ((self.views_at(n_images) or 1) - 1)
            before = n_images
        return total

    def __post_init__(self) -> None:
        hint = "the image and one augmented view; null augments every draw anew"
        at_least(2).check(self, "n_views", section="augment", hint=hint)
        at_least(2).check(self, "max_per_trial", section="augment", hint="for no limit")


@dataclass(kw_only=True)
class GridConfig:
    """The axes of a sweep; every combination is a trial."""

    condition: list[Condition] = field(default_factory=lambda: ["real"])
    """What a trial is trained on."""
    real_fraction: list[float] = field(default_factory=list)
    """Amounts as shares of the train part, in (0, 1]."""
    real_count: list[int] = field(default_factory=list)
    """Amounts as numbers of images."""
    support: list[int] = field(default_factory=lambda: [0])
    """Which images are drawn: each number is another nested order."""
    seed: list[int] = field(default_factory=lambda: [0])
    """Order, prompts and initialisation of the segmenter's training."""
    generator_seed: list[int] = field(default_factory=lambda: [0])
    """Initialisation, noise and drawn outlines of the generator."""
    fold: list[int] = field(default_factory=lambda: [0])
    """Folds of `split.n_folds` to run; [0, 1, ..., n_folds - 1] tests every exam once."""
    launcher: Literal["local", "slurm"] = "local"
    """Where stages run: processes of this machine, or jobs of a SLURM cluster."""
    workers: int = 1
    """Stages that run at the same time, each in a process of its own."""
    devices: list[int] = field(default_factory=list)
    """Ids of the GPUs to run on, one stage each (`trainer.devices` ids a stage where that is more);
    they stand in for `workers`. Empty: the CPU, or the GPU that is there."""
    per_device: int = 1
    """Stages at the same time on each of `devices`."""
    retries: int = 1
    """Times that a stage is started again after its process was killed; what fails by itself is
    not, unless less memory can mend it."""
    max_failures: int = 5
    """Failures in a row, none finished between them, after which no more is started."""

    def __post_init__(self) -> None:
        if not self.real_fraction and not self.real_count:
            raise ValueError("sweep: give real_fraction or real_count at least one amount")
        above(0, at_most=1).check(self, "real_fraction", section="sweep", hint="5 % is 0.05")
        counts = ("real_count", "workers", "per_device", "max_failures")
        at_least(1).check(self, *counts, section="sweep")
        at_least(0).check(self, "retries", section="sweep")
        for name in ("condition", "support", "seed", "generator_seed", "fold"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"sweep.{name}: give at least one value")
            if len(set(values)) != len(values):
                raise ValueError(f"sweep.{name}={values}: a value stands there twice")
        if any(device < 0 for device in self.devices) or len(set(self.devices)) != len(
            self.devices
        ):
            raise ValueError(f"sweep.devices={self.devices}: different ids from 0 on")


@dataclass(kw_only=True)
class EvaluationConfig:
    """How a trained model is scored."""

    prompts: list[Prompt] = field(default_factory=lambda: ["whole_image", "jittered_box"])
    """Prompt protocols; each is a block of the table."""
    jitter_draws: int = 3
    """Fixed draws of the jittered box, the same for every trial."""
    controls: list[Control] = field(default_factory=lambda: ["box_only", "mean_mask", "zero_shot"])
    """Rows beside the trials: the ellipse in the box, the mean mask of the train part, and the
    backbone as it is before any training."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("evaluation.prompts: give at least one value")
        at_least(1).check(self, "jitter_draws", section="evaluation")
        if len(set(self.prompts)) != len(self.prompts):
            raise ValueError(f"evaluation.prompts={self.prompts}: a prompt stands there twice")
        if len(set(self.controls)) != len(self.controls):
            raise ValueError(f"evaluation.controls={self.controls}: a control stands there twice")


@dataclass(kw_only=True)
class ExperimentConfig:
    """A recipe: everything that one sweep is."""

    name: str = "sweep"
    """Name of the sweep and of its folder."""
    compat: Literal["none", "paper"] = "none"
    """`paper` scores as arXiv 2506.23664 does: the jittered box alone, five draws, Dice at 256x256
    in its table. What is trained stays as it is; table_paper.md names the differences."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Train, validation and test."""
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    """SAM and its fine-tuning."""
    unet: UnetConfig = field(default_factory=UnetConfig)
    """The U-Net without prompts that `unet` trials fit."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """The pixel diffusion model and its training."""
    stable_diffusion: StableDiffusionConfig = field(default_factory=StableDiffusionConfig)
    """The pretrained diffusion model and its fine-tuning; read with
    `synthesis.generator: stable_diffusion`."""
    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    """When a generated outline is taken for a head's ellipse; read by `sd_in_channel`."""
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    """Synthetic pairs."""
    gate: GateConfig = field(default_factory=GateConfig)
    """What is refused of them."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmented views."""
    sweep: GridConfig = field(default_factory=GridConfig)
    """The grid."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """The scores."""
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    """The primary contrast, and when a difference counts."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Devices."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    """The cluster's jobs."""
    store: StoreConfig = field(default_factory=StoreConfig)
    """Where runs go."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Dashboards."""

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "-_." for c in self.name):
            raise ValueError(f"name={self.name!r}: letters, digits, '-', '_' and '.' only")
        if self.name == "store" or self.name.startswith("."):
            raise ValueError(f"name={self.name!r}: reserved; choose another name")
        primary = self.statistics.primary
        for name, value, known in (
            ("condition", primary.condition, get_args(Condition)),
            ("baseline", primary.baseline, get_args(Condition)),
            ("prompt", primary.prompt, get_args(Prompt)),
        ):
            if value not in known:
                raise ValueError(
                    f"statistics.primary.{name}={value}: use one of {', '.join(known)}"
                )
        for fold in self.sweep.fold:
            if not 0 <= fold < max(1, self.split.n_folds):
                raise ValueError(
                    f"sweep.fold={fold}: split.n_folds={self.split.n_folds} has folds "
                    f"0 to {max(1, self.split.n_folds) - 1}"
                )
        self._check_devices()
        share, batch_size = self.segmenter.synthetic_share, self.segmenter.batch_size
        if not set(self.sweep.condition) <= set(WITHOUT_PAIRS) and round(share * batch_size) == 0:
            raise ValueError(
                f"segmenter.synthetic_share={share}: no image of a batch of {batch_size}; "
                "raise it, or leave the conditions with pairs out"
            )

    def _check_devices(self) -> None:
        each, grid = self.trainer.devices, self.sweep
        for name, batch_size in (
            ("segmenter", self.segmenter.batch_size),
            (self.generator_section, self.active_generator.batch_size),
        ):
            if batch_size % each:
                raise ValueError(
                    f"trainer.devices={each}: {name}.batch_size={batch_size} cannot be shared "
                    "evenly; choose a divisor"
                )
        if grid.devices and len(grid.devices) % each:
            raise ValueError(
                f"trainer.devices={each}: sweep.devices={grid.devices} are no whole groups of them"
            )
        shares = grid.per_device > 1 or (not grid.devices and grid.workers > 1)
        if each > 1 and shares and grid.launcher == "local":
            raise ValueError(
                f"trainer.devices={each}: only one stage at a time; use sweep.per_device=1, and "
                "sweep.devices=[...] for several groups instead of sweep.workers"
            )
        if grid.devices and grid.launcher == "slurm":
            raise ValueError(
                f"sweep.devices={grid.devices}: SLURM gives a job its GPUs; set slurm.gpus instead"
            )

    @property
    def active_generator(self) -> GeneratorConfig | StableDiffusionConfig:
        """Settings of the generator that `synthesis.generator` names."""
        is_pixel = self.synthesis.generator == "pixel"
        return self.generator if is_pixel else self.stable_diffusion

    @property
    def generator_section(self) -> str:
        """Key of those settings in a recipe."""
        return "generator" if self.synthesis.generator == "pixel" else "stable_diffusion"

    @property
    def sampler_batch_size(self) -> int:
        """Images that the active generator draws at once."""
        is_pixel = self.synthesis.generator == "pixel"
        return (self.synthesis if is_pixel else self.stable_diffusion).sampler.batch_size

    def data_root(self) -> Path:
        """The data folder: `data.root`, or HC18_ROOT.

        Raises:
            InputError: If neither is given.
        """
        root = self.data.root if self.data.root is not None else os.environ.get("HC18_ROOT")
        if not root:
            raise InputError(
                "data.root: no data folder is given; add data.root=/path/to/hc18 or set HC18_ROOT "
                "(`sonosweep data phantom FOLDER` makes a procedural set to try with)"
            )
        return Path(root)


def resolved(config: ExperimentConfig) -> dict[str, Any]:
    """The config as plain JSON types."""
    return _plain(asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
