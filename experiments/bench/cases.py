"""The table of benchmarks: what each measures, both ways, sizes, and what ours must reach."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

CPU, GPU = "cpu", "cuda"


class Target(NamedTuple):
    """A bound that the docs promise."""

    bound: float
    """Least ratio, or highest value."""
    what: str
    """A value's label, or the word by which a ratio asks for it."""
    devices: tuple[str, ...] = (CPU, GPU)


@dataclass(frozen=True)
class Case:
    """One benchmark; each runs on a CPU and on a GPU, at sizes that suit them."""

    measures: str
    function: str
    """`module:function` of this package, called with the `Bench` and the `Found` to fill."""
    published: str = ""
    """The other way; empty where nothing is compared."""
    ours: str = ""
    same: str = ""
    """The test which holds that both give the same answer."""
    targets: tuple[Target, ...] = ()
    sizes: Mapping[str, tuple[Any, Any, Any]] = field(default_factory=dict)
    """For tests, for a CPU, for a GPU."""
    note: str = ""
    """Stands under the table."""

    def target(self, what: str, *, device: str) -> float | None:
        """The bound of a ratio or value on a device, or None."""
        return next((t.bound for t in self.targets if t.what == what and device in t.devices), None)


LOGITS = "tests/experiments/bench/test_bench_parts.py::test_both_ways_give_the_same_logits"
SAM_TESTS = "tests/lightning_modules/segmenters/sam"
SD_TESTS = "tests/lightning_modules/generators/stable_diffusion"
EVERY_STEP = "the encoder in every step"
CASES = {
    "machine": Case(
        "the peak of the matrix product, and of copying memory",
        "machine:bench_machine",
        # A processor without arithmetic in bf16 takes a second for a product of half the side.
        sizes={
            "fp32": (64, 2048, 8192),
            "bf16": (64, 1024, 8192),
            "bytes": (2**20, 2**28, 2**32),
            "repeats": (2, 7, 7),
        },
    ),
    "data": Case(
        "PNG files against prepared arrays",
        "data:bench_data",
        "files decoded and ellipses fitted at every read",
        "prepared, memory-mapped arrays",
        LOGITS,
        (Target(10, "item"),),
        {"images": (8, 20, 20), "reads": (20, 500, 500), "repeats": (2, 5, 5)},
    ),
    "memory": Case(
        "peak memory of a decoder fine-tune over 1,000 images",
        "memory:bench_memory",
        EVERY_STEP,
        "the trainer over 1,000 embeddings",
        LOGITS,
        (Target(2.0, "ours: 1000 embeddings read, then 4 steps of 5", (CPU,)),),
        {"images": (20, 1000, 1000), "steps": (2, 4, 4)},
        "The embeddings are files of zeros of the true size and type; the trainer reads every one "
        "of them through the loader once before it trains. Pages of mapped files that the process "
        "still holds count as its memory. On a GPU the items drawn are moved there.",
    ),
    "encoder": Case(
        "the image encoder, stock and ours",
        "encoder:bench_encoder",
        "segment_anything's and transformers' encoders in fp32",
        "norms folded and channels last, or fused attention; bf16 where it pays",
        f"{SAM_TESTS}/test_sam_models.py::test_the_folded_encoder_equals_the_stock_one",
        (Target(1.8, "vit_b fp32"), Target(3, "vit_b bf16")),
        # A pass of ViT-B takes seconds on a CPU.
        {"batch": (1, 1, 8), "repeats": (2, 3, 3), "vit_repeats": (2, 2, 5)},
    ),
    "finetune": Case(
        "a decoder fine-tune at 5 to 1,000 images, and many on the same images",
        "composed:bench_finetune",
        EVERY_STEP,
        "the stages `embed` and `fit`",
        LOGITS,
        (Target(4, "lite", (CPU,)), Target(30, "vit_b", (CPU,)), Target(50, "vit_b", (GPU,))),
        {
            "steps": ((1, 3), (2, 8), (20, 220)),
            "images": ((1, 4), (1, 5), (4, 16)),
            "repeats": (2, 2, 5),
        },
        "A fine-tune at N images is 20 epochs in batches of 5. Published: start + steps x a "
        "measured step. Ours: fixed parts + N x an embedding + steps x a step; steps and "
        "embeddings are the slope between two sizes of the real stages `embed` and `fit`, their "
        "fixed parts (network, weights, checkpoints on the disk) the rest.",
    ),
    "unet": Case(
        "training the U-Net at 128x192 with strong augmentation",
        "unet:bench_unet",
        "segmentation-models-pytorch in a plain Lightning loop, items augmented one by one",
        "batches augmented as a whole, channels last, the decoder ends at half resolution",
        targets=(Target(2, "image"),),
        sizes={
            "images": (2, 20, 20),
            "steps": (1, 6, 100),
            "batch": (2, 16, 64),
            "size_hw": ((32, 32), (128, 192), (128, 192)),
            "repeats": (1, 3, 3),
        },
        note="The plain loop trains the library's default decoder, at the frame's resolution; ours "
        "is the smaller one that `unet.decoder_channels` has by default. Whether the two score the "
        "same was not measured. Neither has loader processes, behind which a plain loop could hide "
        "its augmentation where cores are to spare.",
    ),
    "evaluation": Case(
        "scoring under five boxes",
        "composed:bench_evaluation",
        "an encoder pass for every box",
        "the stages `embed` and `score`",
        LOGITS,
        (Target(3, "lite"), Target(4.5, "vit_b")),
        {"images": ((1, 3), (1, 5), (1, 5)), "repeats": (2, 2, 5)},
        "Published: 200 x 5 x an image under one box. Ours: fixed parts + 200 x (an embedding + "
        "decoding and scoring under 5 boxes), the slopes between two sizes of the real stages "
        "`embed` and `score`. Both compute Dice, Hausdorff distance and circumference at the "
        "original size with the same functions.",
    ),
    "sampling": Case(
        "drawing from Stable Diffusion, one by one and in batches",
        "diffusion:bench_sampling",
        "diffusers' pipeline at batch 1",
        "batches",
        f"{SD_TESTS}/test_sd_sampling.py::test_latents_equal_the_pipelines",
        (Target(4, "batch", (GPU,)),),
        {"steps": (2, 30, 30), "batch": (2, 4, 32), "repeats": (2, 2, 3)},
        "Random weights; on a CPU a UNet much smaller than Stable Diffusion's, on a GPU one of "
        "its size. The share counts the UNet's passes alone, the VAE's time being in it.",
    ),
    "generator": Case(
        "a LoRA step, latents cached or not",
        "diffusion:bench_generator",
        "VAE and text encoder in the step",
        "latents and prompts encoded once",
        f"{SD_TESTS}/test_sd_latents.py::test_cached_latents_equal_fresh_ones",
        sizes={"batch": (2, 4, 8), "repeats": (2, 5, 5)},
        note="Same UNet, LoRA and batch both ways, random weights, networks of the size that "
        "`sampling` has. Mirror images are cached too: encoding is paid twice an image, once.",
    ),
    "startup": Case(
        "the sweep's own time, and the start of a process",
        "startup:bench_startup",
        "a script a trial",
        "stages of a sweep",
        targets=(Target(2.0, "the sweep's own time a trial"),),
        sizes={"trials": (2, 3, 3), "repeats": (1, 3, 3)},
        note="A real sweep of the test backbone through the runner, one stage at a time, without "
        "W&B. Begins are those of the stages' manifests, ends those of their markers: what lies "
        "between is the sweep's, the start of the process included. A trial is a fit and a score, "
        "two processes.",
    ),
    "ablation": Case(
        "the whole 7-amount x 4-condition ablation",
        "composed:bench_ablation",
        EVERY_STEP,
        "fits on embeddings that they share",
        LOGITS,
        (Target(4, "lite", (CPU,)), Target(40, "vit_b", (CPU,))),
        note="Composed: published = steps x a measured step; ours = 28 x a fit's fixed part + "
        "steps x a step + every embedding once, up to 8 views of an image under weak and strong "
        "augmentation included (400 in a trial, at least 2 an image). Scoring is not in it: "
        "`evaluation` has its own ratio.",
    ),
}
"""In the order of a run."""
