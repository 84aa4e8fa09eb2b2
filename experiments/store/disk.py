"""What a sweep takes on the disk. Torch-free."""

from typing import Any

from experiments.config.schema import ExperimentConfig
from lightning_modules.generators.pixel.config import GeneratorConfig
from lightning_modules.segmenters.sam.config import SegmenterConfig

EMBEDDING_MIB = {"lite": 2.0, "tiny": 0.14, "vit_tiny": 0.05}
"""An image's embedding in half precision, by backbone; 256x64x64 numbers for those not named."""
FIT_MIB = {"lite": 14.0, "tiny": 4.0, "vit_tiny": 4.0}
"""A mask decoder's weights; SAM's own for those not named."""
ENCODER_MIB = {"lite": 22.0, "vit_b": 342.0, "medsam": 342.0, "vit_l": 1176.0, "vit_h": 2430.0}
"""An encoder's weights in float32, kept with each fit where all of it is trained."""
TRAINED_SHARE = {"full": 1.0, "lora": 0.01, "late_lora": 0.01, "adapter": 0.05}
"""Part of those that a tuning mode keeps, roughly."""
STABLE_MIB = 150.0
"""LoRA of rank 128 on Stable Diffusion 1.5, with its config."""
UNET_MIB = 24.0
GENERATOR_MIB = 11.0
PAIR_MIB = 0.35
"""A synthetic pair as PNG and as prepared arrays."""
HC18_IMAGES = 999
"""Counted where a recipe names no subset."""


def _fit_mib(settings: Any) -> float:
    """Weights that one fit leaves."""
    if not isinstance(settings, SegmenterConfig):
        return UNET_MIB
    encoder = ENCODER_MIB.get(settings.backbone, 1.0) * TRAINED_SHARE.get(settings.tuning, 0.0)
    return FIT_MIB.get(settings.backbone, 16.0) + encoder


def disk_need_gib(config: ExperimentConfig) -> float:
    """Roughly what the store takes after the sweep, GiB, were it empty before.

    It counts embeddings, pairs and weights. Source: `hc18_ablation` with 9 conditions, 5 supports
    and 6 views took 4.5 GiB, of which 3.1 GiB were embeddings; this says 4.1.
    """
    grid, arms = config.sweep, config.arms()
    factors = [config.condition(name) for name in {condition for _, condition in arms}]
    cached = [config.segmenter_named(name) for name in config.segmenter_names()]
    backbone = next((s.backbone for s in cached if s.cache is not None), config.segmenter.backbone)
    n_supports = len(grid.support) * len(grid.choice)
    n_amounts = len(grid.real_fraction) + len(grid.real_count)
    parts = _parts(config)
    n_embedded = sum(parts)
    strengths = {each.augment for each in factors} - {"none"}
    if strengths and config.augment.n_views is not None:
        amounts = [*grid.real_count, *(round(part * parts[2]) for part in grid.real_fraction)]
        # What supports draw overlaps; more than the train part cannot be drawn.
        most = parts[2] * (config.augment.n_views - 1)
        n_views = min(most, n_supports * config.augment.augmented_views(amounts))
        n_embedded += len(strengths) * n_views
    generators = [config.generator_named(name) for name in config.generator_names()]
    repeats = len(grid.fold) * len(grid.generator_seed) * len(generators)
    n_shared = repeats * any(
        each.source.is_generated and each.labels == "fixed" for each in factors
    )
    own = [each for each in factors if each.labels == "own"]
    # One a kind of image; of unlabelled ones, one a teacher and round.
    made = {(f.images, f.rounds * (f.images == "unlabelled")) for f in own if f.source.is_generated}
    n_teachers = len(grid.seed) * len(config.segmenter_names())
    n_kinds = sum(n_teachers if images == "unlabelled" else 1 for images, _ in made)
    n_generators = n_shared + n_amounts * n_supports * repeats * n_kinds
    n_drawing = len({each.pairs for each in own} & {"warp", "phantom"})
    n_drawn = n_amounts * n_supports * len(grid.fold) * n_drawing
    n_pairs = (n_generators + n_drawn) * config.synthesis.n_candidates
    n_fits = n_amounts * n_supports * len(grid.seed) * len(grid.fold)
    fits_mib = n_fits * sum(_fit_mib(config.segmenter_named(segmenter)) for segmenter, _ in arms)
    generator_mib = GENERATOR_MIB if isinstance(generators[0], GeneratorConfig) else STABLE_MIB
    pairs_mib = PAIR_MIB * n_pairs + generator_mib * n_generators
    embedded_mib = EMBEDDING_MIB.get(backbone, 2.0) * (n_embedded + n_pairs)
    return (embedded_mib + pairs_mib + fits_mib) / 1024


def _parts(config: ExperimentConfig) -> tuple[float, float, float]:
    """Images of test, validation and train part, as far as the recipe says."""
    total = config.data.subset.n_images or HC18_IMAGES
    split = config.split

    def count(value: float) -> float:
        return min(total, value * total if value < 1 else value)

    test, val = count(split.test), count(split.val)
    left = max(0.0, total - test - val)
    return test, val, left if split.train is None else min(left, count(split.train))
