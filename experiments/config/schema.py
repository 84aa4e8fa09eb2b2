"""The schema of a recipe. Torch-free, so that a wrong key is refused at once."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from datamodules.choices import CHOICES
from datamodules.config import DataConfig, SplitConfig
from datamodules.config_outline import ExtractorConfig
from datamodules.errors import InputError
from experiments.config.blocks import block_settings
from experiments.config.conditions import CONDITIONS, CONTROLS, ConditionConfig
from experiments.config.grid import EvaluationConfig, GridConfig, Prompt
from experiments.config.names import check_known
from experiments.config.running import SlurmConfig, StoreConfig, TrainerConfig, WandbConfig
from experiments.config.statistics import StatisticsConfig
from experiments.config.synthesis import (
    AugmentConfig,
    GateConfig,
    SelfTrainingConfig,
    SynthesisConfig,
)
from lightning_modules.generators.pixel.config import GeneratorConfig
from lightning_modules.generators.stable_diffusion.config import StableDiffusionConfig
from lightning_modules.generators.table import GENERATORS
from lightning_modules.generators.table import row_of as generator_row
from lightning_modules.segmenters.sam.config import SegmenterConfig
from lightning_modules.segmenters.table import SEGMENTERS
from lightning_modules.segmenters.table import row_of as segmenter_row
from lightning_modules.segmenters.unet.config import UnetConfig

MAX_NAME = 100
"""Letters of a sweep's name: it is part of the names of files."""
JUDGE = "judge"
"""Stands for `gate.judge` where a stage names its segmenter."""


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
    extensions: list[str] = field(default_factory=list)
    """Python modules to import first, in every process: they add rows to the tables of segmenters,
    generators, conditions, stages and data layouts (docs/extending.md)."""
    offline: bool = False
    """Never fetch weights, as HF_HUB_OFFLINE=1 does; what is missing ends the command."""
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    """Settings of `sam`."""
    unet: UnetConfig = field(default_factory=UnetConfig)
    """Settings of `unet`."""
    segmenters: dict[str, Any] = field(default_factory=dict)
    """Named blocks of settings for `sweep.segmenter`: `sam_lora: {kind: sam, tuning: lora}` is
    `sam` with another tuning."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """Settings of `pixel`."""
    stable_diffusion: StableDiffusionConfig = field(default_factory=StableDiffusionConfig)
    """Settings of `stable_diffusion`."""
    generators: dict[str, Any] = field(default_factory=dict)
    """Named blocks of settings for `sweep.generator`, likewise."""
    conditions: dict[str, ConditionConfig] = field(default_factory=dict)
    """Conditions of the recipe's own, by their factors: `warp_strong: {pairs: warp, augment:
    strong}`."""
    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    """When a generated outline is taken for a head's ellipse; read by `sd_in_channel`."""
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    """Synthetic pairs."""
    gate: GateConfig = field(default_factory=GateConfig)
    """What is refused of them."""
    self_training: SelfTrainingConfig = field(default_factory=SelfTrainingConfig)
    """Which labels of a teacher are kept."""
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
        if len(self.name) > MAX_NAME:
            raise ValueError(f"name={self.name}: {len(self.name)} letters; at most {MAX_NAME}")
        if self.name == "store" or self.name.startswith("."):
            raise ValueError(f"name={self.name!r}: reserved; choose another name")
        self._check_arms()
        n = self.split.n_folds
        for fold in self.sweep.fold:
            if not 0 <= fold < n:
                raise ValueError(f"sweep.fold={fold}: split.n_folds={n} has folds 0 to {n - 1}")
        self._check_devices()

    def _check_arms(self) -> None:
        """Every name on an axis stands for something, and fits what it is crossed with."""
        for group in ("conditions", "segmenters", "generators"):
            for name in getattr(self, group):
                if not name or not all(c.isalnum() or c in "-_." for c in name):
                    raise ValueError(f"{group}.{name}: letters, digits, '-', '_' and '.' only")
        for name in self.conditions:
            if name in CONDITIONS or name in CONTROLS:
                raise ValueError(f"conditions.{name}: this name is taken; use another one")
        if JUDGE in (*self.segmenters, *self.segmenter_names()):
            # By this name stages find `gate.judge`: a block of it would never be read.
            raise ValueError(f"segmenters.{JUDGE}: this name is the gate's; use another one")
        for name in self.segmenters:
            self.segmenter_named(name)
        for name in self.generators:
            self.generator_named(name)
        self.judge()
        for segmenter, condition in self.arms():
            settings, factors = self.segmenter_named(segmenter), self.condition(condition)
            n_pairs = round(settings.synthetic_share * settings.batch_size)
            if factors.pairs != "none" and settings.epochs is None and n_pairs == 0:
                raise ValueError(
                    f"{self.section_of(segmenter)}.synthetic_share={settings.synthetic_share}: no "
                    f"image of a batch of {settings.batch_size}; raise it, or leave the conditions "
                    "with pairs out"
                )
            if not self.takes_prompt(segmenter) and "whole_image" not in self.evaluation.prompts:
                raise ValueError(
                    f"evaluation.prompts={self.evaluation.prompts}: {segmenter} takes no box; add "
                    "whole_image, under which it is scored"
                )
        for name in self.generator_names():
            self._check_guidance(name)
        primary = self.statistics.primary
        conditions = [*CONDITIONS, *self.conditions]
        check_known(self.statistics.rivals, known=conditions, key="statistics.rivals")
        # Not the first one with results: it must stay where a segmenter failed.
        primary.segmenter = primary.segmenter or self.sweep.segmenter[0]
        primary.generator = primary.generator or self.generator_names()[0]
        primary.choice = primary.choice or self.sweep.choice[0]
        for key, known in (
            ("condition", conditions),
            ("baseline", conditions),
            ("prompt", get_args(Prompt)),
            ("segmenter", [*self.segmenters, *SEGMENTERS]),
            ("generator", [*self.generators, *GENERATORS]),
            ("choice", CHOICES),
        ):
            check_known([getattr(primary, key)], known=known, key=f"statistics.primary.{key}")

    def _check_guidance(self, name: str) -> None:
        settings = self.generator_named(name)
        scale = self.sampler_of(settings).guidance_scale
        # A generator that draws its outlines reads no mask.
        if getattr(settings, "draws_outlines", False) or scale == 1:
            return
        if getattr(settings, "mask_dropout", None) == 0:
            section = generator_row(settings).section
            where = f"generators.{name}" if name in self.generators else section
            own = f"{where}.sampler" if hasattr(settings, "sampler") else "synthesis.sampler"
            raise ValueError(
                f"{own}.guidance_scale={scale}: guidance needs a generator that has also seen "
                f"images without their mask; set {where}.mask_dropout=0.1, or a scale of 1"
            )

    def arms(self) -> list[tuple[str, str]]:
        """Each segmenter under each condition that the sweep fits, in the order of its tables."""
        cross = [(s, c) for c in self.sweep.condition for s in self.sweep.segmenter]
        return list(dict.fromkeys([*cross, *((a.segmenter, a.condition) for a in self.sweep.also)]))

    def segmenter_names(self) -> list[str]:
        """Segmenters of the sweep, by their blocks."""
        return list(dict.fromkeys(segmenter for segmenter, _ in self.arms()))

    def generator_names(self) -> list[str]:
        """Generators of the sweep, by their blocks."""
        return self.sweep.generator or [self.synthesis.generator]

    def condition(self, name: str) -> ConditionConfig:
        """Factors of a condition; ValueError if neither the table nor the recipe has it."""
        if name in self.conditions:
            return self.conditions[name]
        check_known([name], known=[*CONDITIONS, *self.conditions], key="sweep.condition")
        return CONDITIONS[name].factors

    def segmenter_named(self, name: str = "") -> Any:
        """Settings of a segmenter's block, checked; of the section `segmenter` for no name."""
        if name == JUDGE:
            return self.judge()
        return block_settings(
            name or "sam",
            blocks=self.segmenters,
            kinds=SEGMENTERS,
            sections=self,
            where="segmenters",
        )

    def judge(self) -> Any:
        """Settings of the segmenter that judges candidates, see `gate.judge`."""
        # No row would count the labels that it stopped by.
        given = {"kind": "sam", **self.gate.judge, "early_stopping_patience": None}
        if self.gate.judge.get("early_stopping_patience") is not None:
            raise InputError(
                "gate.judge: early_stopping_patience reads validation labels, which no row would "
                "count; leave it out"
            )
        if given["kind"] == "sam":
            # The decoder's tuning stands on embeddings that the store has anyway.
            given = {"tuning": "decoder", **given}
        return block_settings(
            JUDGE, blocks={JUDGE: given}, kinds=SEGMENTERS, sections=self, where="gate"
        )

    def takes_prompt(self, name: str) -> bool:
        """Whether boxes change what a segmenter predicts."""
        return segmenter_row(self.segmenter_named(name)).takes_prompt

    def section_of(self, name: str) -> str:
        """Where a segmenter's settings stand in a recipe, for messages."""
        if name in self.segmenters:
            return f"segmenters.{name}"
        return segmenter_row(self.segmenter_named(name)).section or f"segmenters.{name}"

    def generator_named(self, name: str = "") -> Any:
        """Settings of a generator's block, checked; of the sweep's first one for no name."""
        return block_settings(
            name or self.generator_names()[0],
            blocks=self.generators,
            kinds=GENERATORS,
            sections=self,
            where="generators",
        )

    def sampler_of(self, settings: Any) -> Any:
        """How a generator is sampled: by its own settings, or by those of `synthesis`."""
        return getattr(settings, "sampler", self.synthesis.sampler)

    @property
    def sampler_batch_size(self) -> int:
        """Images that the sweep's generators draw at once: the most of them, so that all of them
        come to single ones where memory runs out."""
        drawn = [self.generator_named(name) for name in self.generator_names()]
        return max(self.sampler_of(settings).batch_size for settings in drawn)

    def _check_devices(self) -> None:
        each, grid, trained = self.trainer.devices, self.sweep, {}
        for name, condition in self.arms():
            trained[self.section_of(name)] = self.segmenter_named(name)
            if self.condition(condition).is_gated:
                trained["gate.judge"] = self.judge()
        for section, settings in trained.items():
            if each > 1 and not segmenter_row(settings).spreads:
                raise ValueError(
                    f"trainer.devices={each}: {section} is fitted on one device, which its batch "
                    "normalisation needs; use trainer.devices=1 (sweep.devices runs one stage a "
                    "GPU), or another segmenter"
                )
        trained |= {name: self.generator_named(name) for name in self.generator_names()}
        for section, settings in trained.items():
            if settings.batch_size % each:
                raise ValueError(
                    f"trainer.devices={each}: {section}.batch_size={settings.batch_size} cannot be "
                    "shared evenly; choose a divisor"
                )
        if grid.devices and len(grid.devices) % each:
            raise ValueError(
                f"trainer.devices={each}: sweep.devices={grid.devices} are no whole groups of them"
            )
        shares = grid.per_device not in ("auto", 1) or (not grid.devices and grid.workers > 1)
        if each > 1 and shares and grid.launcher == "local":
            raise ValueError(
                f"trainer.devices={each}: only one stage at a time; use sweep.per_device=1, and "
                "sweep.devices=[...] for several groups instead of sweep.workers"
            )
        if grid.devices and grid.launcher == "slurm":
            raise ValueError(
                f"sweep.devices={grid.devices}: SLURM gives a job its GPUs; set slurm.gpus instead"
            )

    def data_root(self) -> Path:
        """The data folder: `data.root`, or HC18_ROOT; InputError if neither is given."""
        root = self.data.root if self.data.root is not None else os.environ.get("HC18_ROOT")
        if not root:
            raise InputError(
                "data.root: no data folder is given; add data.root=/path/to/hc18 or set HC18_ROOT "
                "(`sonosweep data phantom FOLDER` makes a procedural set to try with)"
            )
        return Path(root)


def resolved(config: ExperimentConfig) -> dict[str, Any]:
    """The config as plain JSON types."""
    return json.loads(json.dumps(asdict(config), default=str))
