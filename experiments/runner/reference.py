"""What the paper's stages cost on GPUs that nothing was run on here: tables of measured steps.

`experiments/reference/step_costs.csv` has what was measured and where it stands,
`gpus.csv` the published ratios to other GPUs. Torch-free.
"""

import csv
import math
from functools import lru_cache
from typing import NamedTuple

from experiments.config.paths import REFERENCE
from experiments.config.schema import ExperimentConfig
from experiments.plan.nodes import Node
from experiments.runner.costs import Cost
from lightning_modules.generators.stable_diffusion.config import StableDiffusionConfig

MEASURED_GPU = "H200"
LEAST = "generator_least"
"""Row of a training step of whatever batch: the host bounds it."""
_VIT_B = ("vit_b", "medsam")
_UNET_GFLOP_PER_PX = 803 / (512 * 512)
"""Of a pass of Stable Diffusion's UNet, counted at 512x512; at 384x576 it is 2 % less."""
_BACKWARD = 2.08
"""Arithmetic of a LoRA step by that of a forward pass (1,670 by 803 GFLOP)."""


class Gpu(NamedTuple):
    """A GPU of the table."""

    name: str
    ratio: float
    """Time by that of the measured one, of what the GPU bounds."""
    how: str
    """Where its numbers come from, for people."""


@lru_cache(maxsize=1)
def gpus() -> dict[str, Gpu]:
    """The GPUs of the table by name, the measured one first."""
    rows = {row["gpu"]: row for row in _rows("gpus.csv")}
    base, found = rows[MEASURED_GPU], {}
    published = {"arithmetic": "tflops_bf16", "bandwidth": "bandwidth_gb_s"}
    for name, row in rows.items():
        ratio, part = max((float(base[k]) / float(row[k]), part) for part, k in published.items())
        how = f"steps measured on {MEASURED_GPU}"
        if name != MEASURED_GPU:
            how += f", times {ratio:.2g}, the ratio of published {part}; nothing measured"
        found[name] = Gpu(name, ratio, how)
    return found


def known_gpu(product: str) -> str | None:
    """The table's name of a GPU that nvidia-smi names; None for one that it does not know."""
    # A GH200 and a laptop's RTX 4090 are other chips.
    words = [] if "Laptop" in product else product.split()
    return next((name for name in gpus() if set(name.split()) <= set(words)), None)


def reference_cost(node: Node, *, config: ExperimentConfig, gpu: str) -> Cost | None:
    """Cost of a stage on a GPU of the table, scaled from what was measured to its own settings.

    Returns:
        None where nothing like it was measured: another backbone, a fit without embeddings or
        one that trains the encoder, the pixel generator, a stage that the table does not have.
    """
    if node.stage in ("generator", "synthesize"):
        settings = config.generator_named(node.generator)
        if not isinstance(settings, StableDiffusionConfig):
            return None
        passes, least_s = settings.batch_size * _BACKWARD, float(_costs()[LEAST]["unit_s"])
        if node.stage == "synthesize":
            sampler, least_s = settings.sampler, 0.0
            passes = sampler.num_inference_steps * (2 if sampler.guidance_scale > 1 else 1)
        row, gflop = _costs()[node.stage], passes * _UNET_GFLOP_PER_PX * math.prod(settings.size_hw)
        unit_s = gpus()[gpu].ratio * float(row["unit_s"]) * gflop / float(row["gflop"])
        return Cost(max(unit_s, least_s), "table")
    backbone = {
        "embed": node.content.get("encoder", {}).get("backbone"),
        "fit": node.content.get("segmenter", {}).get("backbone"),
        "score": getattr(config.segmenter_named(node.segmenter), "backbone", None),
    }.get(node.stage)
    # Cached features leave half of the encoder to every step and score, which were not measured.
    is_cached = "embeddings" in node.upstream
    is_cached &= config.segmenter_named(node.segmenter).cache == "embedding"
    if backbone not in _VIT_B or (node.stage != "embed" and not is_cached):
        return None
    row = _costs()[node.stage]
    scale = gpus()[gpu].ratio if row["bound"] == "gpu" else 1.0
    return Cost(scale * float(row["unit_s"]), "table", float(row["fixed_s"]))


@lru_cache(maxsize=1)
def _costs() -> dict[str, dict[str, str]]:
    return {row["stage"]: row for row in _rows("step_costs.csv")}


def _rows(name: str) -> list[dict[str, str]]:
    lines = (REFERENCE / name).read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))
