"""The kinds of segmenter, a row each. Torch-free: what needs torch is only named here.

Settings of a kind are a dataclass with, beside what is its own:

- `steps`, `epochs` (or None), `batch_size`, `synthetic_share`, `early_stopping_patience`,
  `precision`, `learning_rate`: read by the stage that fits;
- `frame_hw`, `resize_mode`, `image_factor`: the frame of masks and logits, and how many pixels of
  the image it reads lie in one of the frame's;
- `cache`: what of an image may be computed once for all trials ("embedding", "features"), or None;
- `hashed()`: what of the settings a result depends on, as JSON types: two kinds must not give the
  same.

Its LightningModule takes batches of `HC18DataModule` and has, beside Lightning's own methods:

- `Module.start(settings, seed=, cached=, captures=)`: as training begins;
- `module.config`: its settings;
- `module.predict(batch, boxes_xyxy_px)`: logits (B, 1, h, w) of the frame, with `boxes_xyxy_px`
  (B, 4) read by kinds that take a prompt;
- `Module.untrained(settings)`, where `has_zero_shot`: in eval mode, on the CPU;
- `module.parts()`: its parts by name, whose weights are counted;
- `module.save(path)` and `Module.load(path, settings)`: in eval mode, on the CPU.
"""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_modules.segmenters.sam.config import SegmenterConfig
from lightning_modules.segmenters.sam.weights import backbone_start, encoder_id
from lightning_modules.segmenters.unet.config import PREDICTION_SETTINGS, UnetConfig
from lightning_modules.segmenters.unet.pretrained import encoder_start, weights_id
from lightning_modules.weights_table import StartWeights


@dataclass(frozen=True, kw_only=True)
class SegmenterRow:
    """A kind of segmenter."""

    label: str
    """What people call it."""
    settings: type
    """Dataclass of its settings."""
    section: str | None
    """Key of a recipe that holds the settings which its blocks start from; None for the class's
    own defaults."""
    module: str
    """Its LightningModule, as `package.module:Class`."""
    takes_prompt: bool
    """Whether boxes change what it predicts."""
    has_zero_shot: bool
    """Whether it can be scored before any training (the control `zero_shot`)."""
    spreads: bool
    """Whether several devices may share its training."""
    prediction_settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that predictions depend on and fits do not, so that `hashed()` leaves them out,
    and what turns each off. They hold for fits under strong augmentation, and are off in runs that
    do not name them."""
    weights_id: Callable[[Any], str | None] | None = None
    """Names the weights that it starts from, for ids; None where the seed alone makes them."""
    starts_from: Callable[[Any], StartWeights | None] = lambda _: None
    """Finds these weights; None where there is no file of them."""

    def load_module(self) -> Any:
        """The LightningModule's class."""
        return pkgutil.resolve_name(self.module)


SEGMENTERS: dict[str, SegmenterRow] = {
    "sam": SegmenterRow(
        label="SAM",
        settings=SegmenterConfig,
        section="segmenter",
        module="lightning_modules.segmenters.sam.module:SamModule",
        takes_prompt=True,
        has_zero_shot=True,
        spreads=True,
        weights_id=lambda settings: encoder_id(settings.backbone, settings.weights_path),
        starts_from=lambda settings: backbone_start(settings.backbone, settings.weights_path),
    ),
    "unet": SegmenterRow(
        label="U-Net",
        settings=UnetConfig,
        section="unet",
        module="lightning_modules.segmenters.unet.module:UnetModule",
        takes_prompt=False,
        has_zero_shot=False,
        # Batch normalisation takes its statistics from the whole batch.
        spreads=False,
        prediction_settings=PREDICTION_SETTINGS,
        weights_id=weights_id,
        starts_from=encoder_start,
    ),
}


def row_of(settings: Any) -> SegmenterRow:
    """The row of a segmenter's settings."""
    return next(row for row in SEGMENTERS.values() if type(settings) is row.settings)


def predicting(settings: Any, *, augment: str | None) -> dict[str, Any]:
    """The settings that predictions of a fit under an augmentation depend on; none that is off."""
    if augment != "strong":
        return {}
    known = row_of(settings).prediction_settings
    found = {key: getattr(settings, key) for key in known}
    return {key: value for key, value in found.items() if value != known[key]}


def as_predicting(settings: Any, values: Mapping[str, Any]) -> Any:
    """The settings with those of `predicting` as given, and off where they are not."""
    known = row_of(settings).prediction_settings
    return replace(settings, **{key: values.get(key, off) for key, off in known.items()})
