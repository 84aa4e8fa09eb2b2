"""Where a recipe leaves the paper's protocol (arXiv 2506.23664): footnotes of the comparison."""

from experiments.config.schema import ExperimentConfig
from experiments.results.paper import PAPER_CONDITIONS
from experiments.results.text import counted
from lightning_modules.generators.stable_diffusion.config import StableDiffusionConfig

_BACKBONES = {
    "lite": "LiteMedSAM (frozen TinyViT encoder at 256x256)",
    "tiny": "a small random network for tests, whose numbers mean nothing",
}
_VIT_B = ("vit_b", "sam_vit_b")


def deviations(config: ExperimentConfig) -> list[str]:
    """Say where a recipe leaves the paper's protocol, a sentence a point.

    Returns:
        Sentences in the order training, data, synthesis, evaluation.

    Source: the method section of arXiv 2506.23664 and the authors' published code.
    """
    parts = _training_deviations(config) | _data_deviations(config)
    said = [sentence for sentence, is_there in parts.items() if is_there]
    return [*said, *_synthesis_deviations(config), *_evaluation_deviations(config)]


def _training_deviations(config: ExperimentConfig) -> dict[str, bool]:
    """Each sentence with whether it holds."""
    ours, augment = config.segmenter, config.augment
    backbone = _BACKBONES.get(ours.backbone, ours.backbone)
    prompts = " and ".join(dict.fromkeys(ours.train_prompts))
    limit = f" ({augment.max_per_trial} in a trial, at least 2 an image)"
    views = (
        f" We draw from {augment.n_views} embedded views of each image"
        f"{'' if augment.max_per_trial is None else limit}; the paper transforms afresh."
    )
    is_constant = (ours.lr_schedule, ours.warmup_steps) == ("constant", 0)
    augmented = {PAPER_CONDITIONS["weak"], PAPER_CONDITIONS["strong"]}
    return {
        f"Backbone: ours is {backbone}; the paper's is SAM ViT-B.": ours.backbone not in _VIT_B,
        f"Tuning: ours is {ours.tuning}; the paper trains the mask decoder alone.": (
            ours.tuning != "decoder"
        ),
        f"Steps: we take {counted(ours.steps, 'step')} of batch {ours.batch_size} for every amount "
        "and condition; the paper takes 20 epochs of batch 5, which is 20 steps at 5 real images "
        "and 2,000 with 495 synthetic ones beside them.": ours.epochs is None,
        f"Steps: we take {ours.epochs} epochs of batch {ours.batch_size}; the paper takes 20 "
        "epochs of batch 5.": (
            ours.epochs is not None and (ours.epochs, ours.batch_size) != (20, 5)
        ),
        f"Learning rate: ours is {ours.learning_rate:g} with warm-up and {ours.lr_schedule} after "
        "it, by AdamW; the paper's is a constant 1e-05, by Adam.": not is_constant,
        f"Learning rate: ours is {ours.learning_rate:g}; the paper's is 1e-05.": (
            is_constant and ours.learning_rate != 1e-5
        ),
        f"Prompts in training: ours are {prompts}; the paper's is jittered_box alone.": (
            set(ours.train_prompts) != {"jittered_box"}
        ),
        f"Box jitter: we displace each side by 0 to {ours.jitter_max_px} px; the paper by 0 to 19 "
        "px.": ours.jitter_max_px != 19,
        "Augmentation: we take the box from the transformed mask; the paper's code leaves it where "
        f"it was before.{'' if augment.n_views is None else views}": (
            bool(augmented & set(config.sweep.condition))
        ),
        "Masks: we resize without loss of area; the paper's code truncates a bicubic resize, which "
        "takes 2 % off the head.": True,
    }


def _data_deviations(config: ExperimentConfig) -> dict[str, bool]:
    split, cohorts = config.split, config.data.cohorts()
    if split.file is not None and split.n_folds == 1:
        part = "the test part of a published split"
    elif split.n_folds > 1:
        part = f"every exam once, over {split.n_folds} folds,"
    elif split.test < 1:
        part = f"{100 * split.test:g} % of the images, as whole exams,"
    else:
        part = f"{counted(split.test, 'image')}, as whole exams,"
    tested = f"{part} of the folder that is trained on"
    if cohorts:
        names = ", ".join(folder.name if name is None else name for name, folder in cohorts)
        cohort = "cohort" if len(cohorts) == 1 else "cohorts"
        tested += f", and all images of the external {cohort} {names}"
    return {
        f"Test images: we test {tested}; the paper tests 597 of ES and 125 of AF, none of "
        "HC18.": True,
        "Split: we deal whole exams with their near-duplicates and draw real images stratified by "
        "trimester; the paper draws single images.": True,
    }


def _synthesis_deviations(config: ExperimentConfig) -> list[str]:
    synthesis, is_imported = config.synthesis, config.synthesis.folder is not None
    if not any(config.condition(name).is_generated for name in config.sweep.condition):
        return []
    if PAPER_CONDITIONS["synthesis"] in config.sweep.condition and is_imported:
        count = synthesis.folder_labels
        labels = "an unknown number of labelled images"
        if count is not None:
            labels = counted(count, "labelled image")
        made = f"our pairs are imported from a folder, whose maker saw {labels}"
    elif isinstance(stable := config.generator_named(), StableDiffusionConfig):
        height, width = stable.size_hw
        how = {
            "sd_in_channel": "outlines extracted from its pictures",
            "sd_mask": "each labelled by the ellipse that it was conditioned on",
        }[stable.route]
        labels = counted(synthesis.generator_count, "labelled image")
        made = (
            f"ours is Stable Diffusion with LoRA of rank {stable.lora_rank} at {height}x{width} on "
            f"{labels} ({stable.route}), and draws "
            f"{counted(synthesis.n_candidates, 'candidate')}, {how}"
        )
    else:
        height, width = config.generator_named().size_hw
        labels = counted(synthesis.generator_count, "labelled image")
        made = (
            f"ours is a pixel diffusion model of {height}x{width}, fitted from scratch on {labels},"
            f" and draws {counted(synthesis.n_candidates, 'candidate')}, each labelled by the "
            "ellipse that it was conditioned on"
        )
    gate = "ours are not checked"
    if config.gate.enabled and not is_imported:
        gate = "ours pass an automatic gate"
    share = f"{100 * config.segmenter.synthetic_share:g} %"
    mixture = [
        f"Mixture: {share} of each of our batches is synthetic; the paper adds its pairs to the "
        "real ones."
    ]
    return [
        f"Generator: {made}; the paper's is Stable Diffusion 1.5 with LoRA at 512x512 on 60 "
        "labelled images (20 a trimester), with outlines extracted from its pictures.",
        f"Check of the synthetic pairs: {gate}; the paper's are corrected by hand, and 495 of 500 "
        "are kept.",
        *(mixture if config.segmenter.epochs is None else []),
    ]


def _evaluation_deviations(config: ExperimentConfig) -> list[str]:
    draws = counted(config.evaluation.jitter_draws, "box draw")
    supports, seeds = len(config.sweep.support), len(config.sweep.seed)
    as_ellipse = (
        "Output: we score the ellipse fitted to each predicted mask; the paper scores the mask "
        "(evaluation.output=mask)."
    )
    return [
        *([as_ellipse] if config.evaluation.output == "ellipse" else []),
        f"Box draws: we take {draws} of each image, the same for every model, and average over "
        "them; the paper takes five fresh ones and gives their spread as the standard deviation.",
        f"Models a point: we train {counted(supports * seeds, 'model')} "
        f"({counted(supports, 'support')}, {counted(seeds, 'seed')}); the paper trains one.",
    ]
