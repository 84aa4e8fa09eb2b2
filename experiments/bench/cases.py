"""The table of benchmarks: what each measures, both ways, and how much less ours must take."""

from dataclasses import dataclass

CPU, GPU = "cpu", "cuda"


@dataclass(frozen=True)
class Target:
    """A bound that the docs promise."""

    bound: float
    """Least ratio, or highest value."""
    what: str = ""
    """Which ratio or value of the case; empty where there is one."""
    devices: tuple[str, ...] = (CPU, GPU)


@dataclass(frozen=True)
class Case:
    """One benchmark; each runs on a CPU and on a GPU, at sizes that suit them."""

    measures: str
    function: str
    """`module:function` of this package, called with the `Bench` and the `Result` to fill."""
    published: str = ""
    """The other way; empty where nothing is compared."""
    ours: str = ""
    same: str = ""
    """The test which holds that both give the same answer."""
    targets: tuple[Target, ...] = ()
    by_name_only: bool = False
    """Whether a run without names leaves it out, for it takes an hour or more."""

    def sides(self) -> dict[str, str]:
        """Both ways in words, and what holds that they agree."""
        return {"published": self.published, "ours": self.ours, "same": self.same}

    def target(self, what: str, *, device: str) -> float | None:
        """The bound of a ratio or value on a device; None without one."""
        bounds = [t.bound for t in self.targets if t.what == what and device in t.devices]
        return bounds[0] if bounds else None


LOGITS = "tests/experiments/bench/test_bench_parts.py::test_both_ways_give_the_same_logits"
SAM_TESTS = "tests/lightning_modules/segmenters/sam"
SD_TESTS = "tests/lightning_modules/generators/stable_diffusion"
EVERY_STEP = "the encoder in every step"
ANEW, VIEWS = "augmented and encoded anew at every draw", "a few views of an image, embedded once"
CASES = {
    "machine": Case(
        "the peak of the matrix product, and of copying memory",
        "machine:bench_machine",
    ),
    "data": Case(
        "PNG files against prepared arrays",
        "data:bench_data",
        "files decoded and ellipses fitted at every read",
        "prepared, memory-mapped arrays",
        LOGITS,
        (Target(10),),
    ),
    "memory": Case(
        "peak memory of a decoder fine-tune over 1,000 images",
        "memory:bench_memory",
        EVERY_STEP,
        "the trainer over 1,000 embeddings",
        LOGITS,
        (Target(2.0, devices=(CPU,)),),
    ),
    "encoder": Case(
        "the image encoder, stock and ours",
        "encoder:bench_encoder",
        "segment_anything's and transformers' encoders in fp32",
        "norms folded and channels last, or fused attention; bf16 where it pays",
        f"{SAM_TESTS}/test_sam_models.py::test_the_folded_encoder_equals_the_stock_one",
        (Target(1.8, "vit_b fp32"), Target(3, "vit_b bf16")),
    ),
    "finetune": Case(
        "a decoder fine-tune at 5, 50 and 500 images",
        "finetune:bench_finetune",
        EVERY_STEP,
        "the stages `embed` and `fit`",
        LOGITS,
        (Target(4, "lite", (CPU,)), Target(30, "vit_b", (CPU,)), Target(50, "vit_b", (GPU,))),
    ),
    "evaluation": Case(
        "scoring under five boxes",
        "evaluation:bench_evaluation",
        "an encoder pass for every box",
        "the stages `embed` and `score`",
        LOGITS,
        (Target(3, "lite"), Target(4.5, "vit_b")),
    ),
    "sampling": Case(
        "drawing from Stable Diffusion, one by one and in batches",
        "diffusion:bench_sampling",
        "diffusers' pipeline at batch 1",
        "batches",
        f"{SD_TESTS}/test_sd_sampling.py::test_latents_equal_the_pipelines",
        (Target(4, devices=(GPU,)),),
    ),
    "generator": Case(
        "a LoRA step, latents cached or not",
        "diffusion:bench_generator",
        "VAE and text encoder in the step",
        "latents and prompts encoded once",
        f"{SD_TESTS}/test_sd_latents.py::test_cached_latents_equal_fresh_ones",
    ),
    "startup": Case(
        "the sweep's own time, and the start of a process",
        "startup:bench_startup",
        "a script a trial",
        "stages of a sweep",
        targets=(Target(2.0),),
    ),
    "ablation": Case(
        "the whole 7-amount x 4-condition ablation",
        "ablation:bench_ablation",
        EVERY_STEP,
        "fits on embeddings that they share",
        LOGITS,
        (Target(4, "lite", (CPU,)), Target(40, "vit_b", (CPU,))),
    ),
    "scaling": Case(
        "growth with images, image size, trials and devices",
        "ablation:bench_scaling",
        EVERY_STEP,
        "fits on embeddings that they share",
        LOGITS,
    ),
    "views": Case(
        "embedded views against fresh augmentation, in Dice and time (an hour)",
        "views:bench_views",
        ANEW,
        VIEWS,
        by_name_only=True,
    ),
    "views100": Case(
        "the same at 100 images (more than an hour)",
        "views:bench_views",
        ANEW,
        VIEWS,
        by_name_only=True,
    ),
}
"""In the order of a run."""
