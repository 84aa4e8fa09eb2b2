"""Where a recipe leaves the paper's protocol (arXiv 2506.23664): footnotes of the comparison."""

from experiments.config.schema import ExperimentConfig
from experiments.config.words import counted
from experiments.results.paper import PAPER_CONDITIONS
from lightning_modules.generators.stable_diffusion.config import StableDiffusionConfig
from lightning_modules.segmenters.sam.config import SegmenterConfig

_BACKBONES = {
    "lite": "LiteMedSAM (frozen TinyViT encoder at 256x256)",
    "tiny": "a small random network for tests, whose numbers mean nothing",
    "vit_b": "SAM ViT-B",
    "sam_vit_b": "SAM ViT-B",
}
Row = tuple[str, str, str]
"""What it is, ours and the paper's."""


def deviations(config: ExperimentConfig) -> list[str]:
    """Say where a recipe leaves the paper's protocol, a sentence a point.

    Source: the method section of arXiv 2506.23664 and the authors' published code.
    """
    swept = [config.segmenter_named(name) for name in config.segmenter_names()]
    # The paper's student is a SAM: the first that the sweep has.
    sam = next((each for each in swept if isinstance(each, SegmenterConfig)), config.segmenter)
    rows = [*_training(config, ours=sam), *_data(config)]
    rows += [*_synthesis(config, segmenter=sam), *_evaluation(config)]
    return [
        f"{what}: ours is {ours}; the paper's is {theirs}."
        for what, ours, theirs in rows
        if ours != theirs
    ]


def _training(config: ExperimentConfig, *, ours: SegmenterConfig) -> list[Row]:
    augment = config.augment
    length, theirs = f"{ours.epochs} epochs of batch {ours.batch_size}", "20 epochs of batch 5"
    if ours.epochs is None:
        length = f"{counted(ours.steps, 'step')} of batch {ours.batch_size} for every amount and "
        length += "condition"
        theirs += ", which is 20 steps at 5 real images and 2,000 with 495 synthetic ones beside "
        theirs += "them"
    rate = f"{ours.learning_rate:g}, {ours.lr_schedule}"
    rate += f" after {counted(ours.warmup_steps, 'step')} of warm-up" if ours.warmup_steps else ""
    rows = [
        ("Backbone", _BACKBONES.get(ours.backbone, ours.backbone), "SAM ViT-B"),
        ("Tuning", ours.tuning, "decoder"),
        ("Training", length, theirs),
        ("Optimiser", "AdamW" if ours.weight_decay > 0 else "Adam", "Adam"),
        ("Learning rate", rate, "1e-05, constant"),
        ("Prompts in training", " and ".join(dict.fromkeys(ours.train_prompts)), "jittered_box"),
        ("Box jitter in training", f"0 to {ours.jitter_max_px} px a side", "0 to 19 px a side"),
        ("Resizing of masks", "without loss of area",
         "a truncated bicubic one, which takes 2 % off the head"),
    ]  # fmt: skip
    if {PAPER_CONDITIONS["weak"], PAPER_CONDITIONS["strong"]} & set(config.sweep.condition):
        box, views = "one whose box is that of the transformed mask", ""
        if augment.n_views is not None:
            views = f", in {augment.n_views} embedded views of each image"
        if augment.n_views is not None and augment.max_per_trial is not None:
            views += f" ({augment.max_per_trial} in a trial, at least 2 an image)"
        rows.append(("Augmentation", box + views, "a fresh one, whose box stays where it was"))
    return rows


def _data(config: ExperimentConfig) -> list[Row]:
    split, cohorts = config.split, config.data.cohorts()
    if split.file is not None and split.n_folds == 1:
        part = "the test part of a published split"
    elif split.n_folds > 1:
        part = f"every exam once, over {split.n_folds} folds,"
    else:
        share = f"{100 * split.test:g} % of the images"
        part = f"{share if split.test < 1 else counted(split.test, 'image')}, as whole exams,"
    tested = f"{part} of the folder that is trained on"
    if cohorts:
        names = ", ".join(folder.name if name is None else name for name, folder in cohorts)
        cohort = "cohort" if len(cohorts) == 1 else "cohorts"
        tested += f", and all images of the external {cohort} {names}"
    split_by = "whole exams with their near-duplicates, and amounts stratified by trimester"
    return [
        ("Test set", tested, "597 images of ES and 125 of AF, none of HC18"),
        ("Split", f"by {split_by}", "by single images"),
    ]


def _synthesis(config: ExperimentConfig, *, segmenter: SegmenterConfig) -> list[Row]:
    synthesis, is_imported = config.synthesis, config.synthesis.folder is not None
    if not any(config.condition(name).source.is_generated for name in config.sweep.condition):
        return []
    labels = counted(synthesis.generator_count, "labelled image")
    drawn = counted(synthesis.n_candidates, "candidate")
    extracted = "with outlines extracted from its pictures"
    labelled = "each labelled by the ellipse that it was conditioned on"
    if PAPER_CONDITIONS["synthesis"] in config.sweep.condition and is_imported:
        known = "an unknown number of labelled images"
        if synthesis.folder_labels is not None:
            known = counted(synthesis.folder_labels, "labelled image")
        made = f"unknown: pairs are imported from a folder, whose maker saw {known}"
    else:
        generator = config.generator_named(next(iter(config.generator_names()), ""))
        size = "{}x{}".format(*generator.size_hw)
        made = f"a pixel diffusion model of {size}, fitted from scratch on {labels}"
        if isinstance(generator, StableDiffusionConfig):
            made = f"Stable Diffusion with LoRA of rank {generator.lora_rank} at {size} on {labels}"
            made += f" ({generator.route})"
            labelled = extracted if generator.route == "sd_in_channel" else labelled
        made += f", of {drawn}, {labelled}"
    gate = "an automatic gate" if config.gate.enabled and not is_imported else "none"
    theirs = "Stable Diffusion 1.5 with LoRA at 512x512 on 60 labelled images (20 a trimester), "
    theirs += extracted
    rows = [
        ("Generator", made, theirs),
        ("Check of the pairs", gate, "correction by hand, and 495 of 500 are kept"),
    ]
    if segmenter.epochs is None:
        share = f"{100 * segmenter.synthetic_share:g} %"
        rows.append(("Synthetic part", f"{share} of each batch", "all pairs beside the real ones"))
    return rows


def _evaluation(config: ExperimentConfig) -> list[Row]:
    supports, seeds = len(config.sweep.support), len(config.sweep.seed)
    models = counted(supports * seeds, "model")
    draws = counted(config.evaluation.jitter_draws, "box draw")
    mask = "the mask (evaluation.output=mask)"
    is_mask = config.evaluation.output == "mask"
    return [
        ("Output that is scored", mask if is_mask else "the ellipse fitted to each mask", mask),
        ("Score of an image", f"the mean over {draws}, the same for every model",
         "the mean over five fresh ones, whose spread is its standard deviation"),
        ("A point", f"{models} ({counted(supports, 'support')}, {counted(seeds, 'seed')})",
         "one model"),
    ]  # fmt: skip
