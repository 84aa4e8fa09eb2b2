"""Settings of a sweep's axes, and of how its trials are scored. Torch-free."""

from dataclasses import dataclass, field
from typing import Literal

from datamodules.allowed import above, at_least, between
from datamodules.choices import CHOICES
from datamodules.choices import DEFAULT as DEFAULT_CHOICE
from experiments.config.names import check_known, check_lists

Prompt = Literal["whole_image", "predicted_box", "jittered_box", "tight_box"]
Output = Literal["ellipse", "mask"]
Control = Literal["box_only", "mean_mask", "zero_shot"]
AXES = ("condition", "segmenter", "generator", "real_count", "real_fraction")
AXES += ("choice", "support", "seed", "generator_seed", "fold")
"""Axes of the grid that one trial is named by."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A place in the grid."""

    condition: str
    segmenter: str = "sam"
    """Its segmenter's block; "" where none is in it."""
    generator: str = ""
    """Likewise."""
    real_fraction: float | None = None
    n_real: int = 0
    choice: str = DEFAULT_CHOICE
    """How its labelled images were chosen; "" for a control."""
    support: int = 0
    seed: int = 0
    generator_seed: int = 0
    fold: int = 0


@dataclass(kw_only=True)
class ArmConfig:
    """One segmenter under one condition."""

    segmenter: str = "sam"
    """As in `sweep.segmenter`."""
    condition: str = "real"
    """As in `sweep.condition`."""


@dataclass(kw_only=True)
class GridConfig:
    """The axes of a sweep; every combination is a trial."""

    condition: list[str] = field(default_factory=lambda: ["real"])
    """What a trial is trained on: built-in conditions, or those of the recipe's `conditions`."""
    segmenter: list[str] = field(default_factory=lambda: ["sam"])
    """What is trained: `sam`, `unet`, or blocks of the recipe's `segmenters`."""
    generator: list[str] = field(default_factory=list)
    """What makes synthetic pairs: `pixel`, `stable_diffusion`, or blocks of the recipe's
    `generators`. Empty takes `synthesis.generator`."""
    also: list[ArmConfig] = field(default_factory=list)
    """Single pairs of a segmenter and a condition beside the full cross of the two axes."""
    real_fraction: list[float] = field(default_factory=lambda: [1.0])
    """Amounts as shares of the train part, in (0, 1]; with `real_count` none by default."""
    real_count: list[int] = field(default_factory=list)
    """Amounts as numbers of images."""
    choice: list[str] = field(default_factory=lambda: ["random"])
    """How the labelled images are chosen, a row of `datamodules.choices`: `random`,
    `by_pixel_size`, `coverage`, or the oracle `by_size`, which reads labels."""
    support: list[int] = field(default_factory=lambda: [0])
    """Which images are drawn: each number is another nested order of a choice."""
    seed: list[int] = field(default_factory=lambda: [0])
    """Order, prompts and initialisation of the segmenter's training."""
    generator_seed: list[int] = field(default_factory=lambda: [0])
    """Initialisation, noise and drawn outlines of the generator."""
    fold: list[int] = field(default_factory=lambda: [0])
    """Folds of `split.n_folds` to run; [0, 1, ..., n_folds - 1] tests every exam once."""
    launcher: Literal["local", "slurm"] = "local"
    """Where stages run: processes of this machine, or jobs of a SLURM cluster."""
    workers: int = 1
    """Stages that run at the same time, each in a process of its own; on a GPU `per_device` may
    start more."""
    devices: list[int] = field(default_factory=list)
    """Ids of the GPUs to run on instead of `workers`, `trainer.devices` of them a stage. Empty: the
    CPU, or the GPU that is there."""
    per_device: int | str = "auto"
    """Stages at the same time on a GPU, a number for each of `devices`. auto: up to four, while the
    GPU's memory holds what like runs took."""
    retries: int = 1
    """Times that a stage is started again after its process was killed; what fails with an error
    is not, except where memory ran out."""
    max_failures: int = 5
    """Failures in a row, none finished between them, after which no more is started."""

    def __post_init__(self) -> None:
        if not self.real_fraction and not self.real_count:
            raise ValueError("sweep: give real_fraction or real_count at least one amount")
        above(0, at_most=1).check(self, "real_fraction", section="sweep", hint="5 % is 0.05")
        counts = ("real_count", "workers", "max_failures")
        at_least(1).check(self, *counts, section="sweep")
        shared = self.per_device
        if shared != "auto" and (isinstance(shared, str) or shared < 1):
            raise ValueError(f"sweep.per_device={shared}: must be a number from 1, or auto")
        at_least(0).check(self, "retries", section="sweep")
        axes = ("condition", "segmenter", "choice", "support", "seed", "generator_seed", "fold")
        check_lists(self, *axes, section="sweep")
        seeds = ("support", "seed", "generator_seed")
        between(0, 10**9).check(self, *seeds, section="sweep")
        check_lists(self, "generator", "devices", section="sweep", may_be_empty=True)
        check_known(self.choice, known=CHOICES, key="sweep.choice")
        at_least(0).check(self, "devices", section="sweep", hint="ids of GPUs")


@dataclass(kw_only=True)
class EvaluationConfig:
    """How a trained model is scored."""

    prompts: list[Prompt] = field(default_factory=lambda: ["whole_image", "jittered_box"])
    """Prompt protocols; each is a block of the table."""
    jitter_draws: int = 3
    """Fixed draws of the jittered box, the same for every trial."""
    output: Output = "ellipse"
    """Which scores are shown: of the ellipse fitted to each predicted mask, or of the mask as it
    is. Both are always in results.csv."""
    controls: list[Control] = field(default_factory=lambda: ["box_only", "mean_mask", "zero_shot"])
    """Rows beside the trials: the ellipse in the box, the mean mask of the train part, and the
    backbone as it is before any training."""

    def __post_init__(self) -> None:
        check_lists(self, "prompts", section="evaluation")
        check_lists(self, "controls", section="evaluation", may_be_empty=True)
        at_least(1).check(self, "jitter_draws", section="evaluation")
