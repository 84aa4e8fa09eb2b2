"""The kinds of generator, a row each. Torch-free: what needs torch is only named here.

Settings of a kind are a dataclass with `steps`, `batch_size`, `precision`, `size_hw` and
`hashed()`, what of them a fit depends on, as JSON types: two kinds must not give the same. With a
`sampler` of their own, which has a `batch_size`, they also say whether the kind `draws_outlines`.

Its LightningModule takes batches of `HC18DataModule` at `size_hw` and has, beside Lightning's own
methods:

- `Module.start(settings, seed=)`: as training begins;
- `module.save_generator(folder)`, and `Module.load_generator(folder, settings)`: ready to draw;
- `module.draw_on_masks(masks, seeds=, prompts=, sampler=, progress=)`: images (N, 1, H, W) in
  [0, 1] on filled masks (N, 1, H, W) {0, 1}, each from its own seed.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_modules.generators.pixel.config import GeneratorConfig
from lightning_modules.generators.stable_diffusion.config import StableDiffusionConfig
from lightning_modules.generators.stable_diffusion.weights import base_id, base_start
from lightning_modules.weights_table import StartWeights


@dataclass(frozen=True, kw_only=True)
class GeneratorRow:
    """A kind of generator."""

    label: str
    """What people call it."""
    settings: type
    """Dataclass of its settings."""
    section: str | None
    """Key of a recipe that holds the settings which its blocks start from; None for the class's
    own defaults."""
    module: str
    """Its LightningModule, as `package.module:Class`."""
    content_key: str = "generator"
    """Key of its settings in a stage's content."""
    reads_prompts: bool = False
    """Whether a sentence on the image changes what it draws."""
    weights_id: Callable[[Any], str] | None = None
    """Names the weights that it starts from, for ids; None where the seed alone makes them."""
    starts_from: Callable[[Any], StartWeights | None] = lambda _: None
    """Finds these weights; None where there is no file of them."""
    prepare: str | None = None
    """Function (context, module, ids) before the training, as `package.module:function`."""
    draw: str | None = None
    """Function (context, module, ids) that gives `Drawn` of `experiments.stages.generator`, with
    labels of its own, instead of images on given masks; `package.module:function`, or None."""

    def load_module(self) -> Any:
        """The LightningModule's class."""
        return pkgutil.resolve_name(self.module)


GENERATORS: dict[str, GeneratorRow] = {
    "pixel": GeneratorRow(
        label="pixel diffusion",
        settings=GeneratorConfig,
        section="generator",
        module="lightning_modules.generators.pixel.module:DiffusionModule",
    ),
    "stable_diffusion": GeneratorRow(
        label="Stable Diffusion with LoRA",
        settings=StableDiffusionConfig,
        section="stable_diffusion",
        module="lightning_modules.generators.stable_diffusion.module:StableDiffusionModule",
        content_key="stable_diffusion",
        reads_prompts=True,
        weights_id=lambda settings: base_id(settings.base_model, revision=settings.revision),
        starts_from=lambda settings: base_start(settings.base_model, revision=settings.revision),
        prepare="experiments.stages.stable_diffusion:attach_latents",
        draw="experiments.stages.stable_diffusion:draw_candidates",
    ),
}


def row_of(settings: Any) -> GeneratorRow:
    """The row of a generator's settings."""
    return next(row for row in GENERATORS.values() if type(settings) is row.settings)
