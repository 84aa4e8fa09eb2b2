"""Whether a GPU has the memory that a recipe's generator takes, before it trains. Torch-free."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from experiments.config.running import TrainerConfig
from experiments.config.schema import ExperimentConfig
from experiments.plan.nodes import Plan
from experiments.runner.gpus import device_kind, gpu_memory_gib, gpu_names
from experiments.store.runs import RunStore, is_done
from lightning_modules.generators.stable_diffusion.config import StableDiffusionConfig

_GIB = 2**30
_FROZEN = 859_520_964
"""Weights of Stable Diffusion 1.5's UNet."""
_LORA_A_RANK = 199_296
"""Weights of LoRA on its attention, for each rank."""
SAVED_GIB = {False: 0.84, True: 0.14}
"""What a LoRA step keeps for its backward pass, for one image of 512x512 under bf16-mixed, by
gradient checkpointing: as `tests/experiments/test_true_size.py` counts it on the true network."""
_COMPUTED_AGAIN = 0.5
"""Share of what is kept without checkpointing that stands for the block computed again with it."""
_FLOAT32_NORMS = 2
"""A GPU's autocast keeps norms in float32; an allowance, not measured."""
_ROOM_GIB = 1.5
"""An allowance for the driver's context, the largest temporary and fragments."""
_SMALLER_HW = ((384, 384), (256, 256))


def training_gib(settings: StableDiffusionConfig) -> float:
    """Memory of a training step of one image, GiB: batches are computed in parts where they do not
    fit, so that one image is the least.
    """
    is_mixed = settings.precision == "bf16-mixed"
    # Trained weights are float32, and so are gradient, AdamW's two moments and the average.
    trained = _LORA_A_RANK * settings.lora_rank * 4 * (4 + (settings.ema_decay > 0))
    frozen = _FROZEN * (2 if is_mixed else 4)
    share = math.prod(settings.size_hw) / (512 * 512) * (1 if is_mixed else 2)
    kept = SAVED_GIB[settings.gradient_checkpointing]
    if settings.gradient_checkpointing:
        kept += _COMPUTED_AGAIN * SAVED_GIB[False]
    saved = _FLOAT32_NORMS * kept * share
    return (trained + frozen) / _GIB + saved + _ROOM_GIB


def held_gib(settings: StableDiffusionConfig, *, n_images: int, trainer: TrainerConfig) -> float:
    """Memory of `n_images` training items, GiB, an image and a mask in float32 each, that stay on
    the GPU under `trainer`; 0 where batches can be split, for what runs out of memory then holds
    them no longer."""
    if settings.batch_size > trainer.devices:
        return 0.0
    held = n_images * 2 * 4 * math.prod(settings.size_hw) / _GIB
    return held if held <= trainer.resident_gib else 0.0


def check_gpu_memory(config: ExperimentConfig, plan: Plan) -> None:
    """Refuse (InputError) a generator that is still to be trained and does not fit the GPU, with
    what it takes and settings that fit.
    """
    if config.sweep.launcher != "local" or device_kind(config) != "cuda":
        return
    store, memory, names = RunStore(Path(config.store.root)), gpu_memory_gib(), gpu_names()
    used = config.sweep.devices or range(len(names))
    sizes = [(memory[d], names[d]) for d in used if d < len(memory) and memory[d] is not None]
    if not config.sweep.devices:
        # CUDA begins with the fastest GPU, which nvidia-smi does not tell: taken for the largest.
        sizes = sorted(sizes, reverse=True)[: config.trainer.devices]
    if not sizes:
        return
    have_gib, gpu = min(sizes)
    most_images: dict[str, int] = {}
    for node in plan.nodes.values():
        if node.stage == "generator" and not is_done(store.run_dir(node.stage, node.id)):
            # With those that a teacher labelled.
            read = [node, *(plan.nodes[key] for key in node.upstream.values())]
            n_images = sum(len(each.content.get("images", ())) for each in read)
            most_images[node.generator] = max(most_images.get(node.generator, 0), n_images)
    for name, n_images in most_images.items():
        settings = config.generator_named(name)
        if not isinstance(settings, StableDiffusionConfig):
            continue
        need_gib = training_gib(settings)
        held = held_gib(settings, n_images=n_images, trainer=config.trainer)
        if need_gib + held > have_gib:
            section = "stable_diffusion" if name not in config.generators else f"generators.{name}"
            remedy = f"trainer.resident_gib=0 fits ({need_gib:.1f} GiB), or use a larger GPU"
            if need_gib > have_gib:
                remedy = _remedy(settings, section=section, have_gib=have_gib)
            raise InputError(
                f"{section}: its training takes about {need_gib + held:.1f} GiB at "
                f"{settings.size_hw[0]}x{settings.size_hw[1]}, and {gpu} has {have_gib:.1f}; "
                + remedy
            )


def _remedy(settings: StableDiffusionConfig, *, section: str, have_gib: float) -> str:
    """The mildest change of the settings that fits, in words for the command line."""
    change: dict[str, Any] = {"gradient_checkpointing": True, "precision": "bf16-mixed"}
    sizes = [hw for hw in _SMALLER_HW if math.prod(hw) < math.prod(settings.size_hw)]
    for each in (change, *(change | {"size_hw": size_hw} for size_hw in sizes)):
        need_gib = training_gib(replace(settings, **each))
        if need_gib <= have_gib:
            words = " ".join(
                f"{section}.{key}=" + json.dumps(value, separators=(",", ":")).strip('"')
                for key, value in each.items()
                if value != getattr(settings, key)
            )
            return f"{words} fits ({need_gib:.1f} GiB), or use a larger GPU"
    return "no setting of it fits: use a larger GPU, or synthesis.folder=... for pairs made there"
