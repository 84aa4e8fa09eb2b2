"""Gather what a sweep's report shows: numbers from its tables, pictures from its runs."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import yaml

from datamodules.annotation import annotation_of, image_of
from datamodules.choices import DEFAULT
from datamodules.head_ellipse import filled_ellipse
from datamodules.samples import trimester
from experiments.config.schema import resolved
from experiments.config.words import counted
from experiments.results import report_synthesis as synthesis
from experiments.results.axes import is_control, prompt_label, series_label, shown_axes
from experiments.results.figures import figure_trimesters
from experiments.results.findings import best_trial, pick_cases
from experiments.results.panels import png_bytes
from experiments.results.pictures import PREDICTION_RGB, REFERENCE_RGB, overlay_contours
from experiments.results.report import Picture
from experiments.results.self_training import kept_labels
from experiments.results.student_agreement import agreement_table
from experiments.runner.sweep import Sweep
from experiments.store.kept_masks import read_prediction
from experiments.store.provenance import code_name, provenance


def gather(
    sweep: Sweep, *, per_image: pd.DataFrame, results: pd.DataFrame, figure_png: bytes
) -> dict[str, Any]:
    """Put together what a sweep's report shows beside its numbers, from what is finished.

    The keys are those of `content` in templates/report.html.j2. Pictures are `Picture`, or pairs
    of them; tables hold text, or numbers that the template writes.
    """
    predictions, predictions_note = _predictions(sweep, per_image)
    near_copies, near_copies_note = synthesis.near_copies(sweep)
    return {
        "title": f"{sweep.config.name}: fetal head segmentation with few labels",
        # Decides the banner and the attribution.
        "data_kind": sweep.data.name,
        "figures": _figures(sweep, per_image, figure_png=figure_png),
        "real": synthesis.real_pairs(sweep),
        "synthetic": synthesis.sample_pairs(sweep),
        "agreement": _agreement(sweep, per_image),
        "kept_labels": kept_labels(sweep),
        "predictions": predictions,
        "predictions_note": predictions_note,
        "candidates": synthesis.candidates(sweep),
        "gate_effect": synthesis.gate_effect(results),
        "fidelity": synthesis.fidelity_views(sweep),
        "near_copies": near_copies,
        "near_copies_note": near_copies_note,
        "data_facts": _data_facts(sweep),
        "data_summary": _data_summary(sweep),
        "protocol": _protocol(sweep),
        "provenance": _provenance(sweep),
        "config_yaml": yaml.safe_dump(resolved(sweep.config), sort_keys=False),
        "runs": _runs(sweep),
    }


def _figures(sweep: Sweep, per_image: pd.DataFrame, *, figure_png: bytes) -> list[Picture]:
    caption = "Dice against the number of real images; bars are 95 % intervals over exams, and "
    caption += "over supports too where a point has several. Small dots are its single trials."
    figures = [Picture(image=figure_png, caption=caption)]
    where = {"prompts": sweep.config.evaluation.prompts, "test_cohort": sweep.data.name}
    prompt = shown_prompt(per_image[per_image["trimester"].notna()], **where)
    if prompt is not None:
        drawn = figure_trimesters(per_image, prompt=prompt, test_cohort=sweep.data.name)
        caption = "Dice by trimester at the smallest and the largest amount; bars are 95 % "
        caption += "intervals over exams alone, for these trained models."
        figures.append(Picture(image=png_bytes(drawn), caption=caption))
    return figures


def shown_prompt(
    per_image: pd.DataFrame, *, prompts: Sequence[str], test_cohort: str
) -> str | None:
    """The first prompt, in the order given, under which a trained model was scored on a cohort."""
    rows = per_image[~is_control(per_image) & (per_image["test_cohort"] == test_cohort)]
    return next((prompt for prompt in prompts if prompt in set(rows["prompt"])), None)


def _agreement(sweep: Sweep, per_image: pd.DataFrame) -> pd.DataFrame:
    cohort = sweep.data.name
    specs = {spec.id: spec for spec in sweep.plan.trials}

    def mask_of(trial_id: str, prompt: str, sample_id: str) -> np.ndarray:
        return _predicted(sweep, specs[trial_id].score_keys[cohort, prompt], prompt, sample_id)

    return agreement_table(per_image[per_image["test_cohort"] == cohort], mask_of=mask_of)


def _predicted(sweep: Sweep, key: str, prompt: str, sample_id: str) -> np.ndarray:
    """A prediction as it is scored: a mask uint8 (H, W), or the filled ellipse fitted to it."""
    run_dir, size_hw = sweep.run_dir(sweep.runs[key]), sweep.data.rows[sample_id].size_hw
    mask = read_prediction(run_dir, prompt=prompt, sample_id=sample_id, size_hw=size_hw)
    return filled_ellipse(mask)[1] if sweep.config.evaluation.output == "ellipse" else mask


def _predictions(sweep: Sweep, per_image: pd.DataFrame) -> tuple[dict[str, list[Picture]], str]:
    """Of the best series at the largest amount, a trial's median, worst and best test images."""
    cohort = sweep.data.name
    prompt = shown_prompt(per_image, prompts=sweep.config.evaluation.prompts, test_cohort=cohort)
    if prompt is None:
        return {}, ""
    scored = (per_image["test_cohort"] == cohort) & (per_image["prompt"] == prompt)
    here = best_trial(per_image[scored & ~is_control(per_image)])
    spec = next(s for s in sweep.plan.trials if s.id == here["trial_id"].iloc[0])
    groups: dict[str, list[Picture]] = {}
    for _, case in pick_cases(here).iterrows():
        sample = sweep.data.samples[case["sample_id"]]
        predicted = _predicted(sweep, spec.score_keys[cohort, prompt], prompt, sample.sample_id)
        outlines = [(annotation_of(sample).mask, REFERENCE_RGB), (predicted, PREDICTION_RGB)]
        picture = Picture(
            image=overlay_contours(image_of(sample), outlines),
            caption=f"{sample.sample_id}: Dice {100 * case['dice']:.1f} %",
        )
        groups.setdefault(case["which"].capitalize(), []).append(picture)
    shown = shown_axes(per_image)
    return groups, (
        f"The best mean Dice at the largest amount: {series_label(here.iloc[0], shown=shown)}, "
        f"{counted(spec.n_real, 'real image')} (support {spec.support}), {cohort}, "
        f"{prompt_label(prompt)}."
    )


def _data_facts(sweep: Sweep) -> dict[str, str]:
    index = sweep.data.indices[sweep.data.name]
    kinds = Counter(row.kind for row in index.rows)
    subset = sweep.config.data.subset
    return {
        "cohort": sweep.data.name,
        "subset": f"{subset.name}, {counted(len(index.rows), 'image')}",
        "exams": str(len({row.exam_id for row in index.rows})),
        "annotations": ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())),
        "near-duplicate pairs": str(len(index.duplicates)),
    }


def _data_summary(sweep: Sweep) -> pd.DataFrame:
    split, folds, rows = sweep.data.split, sweep.data.folds, []
    parts = {"train": split.train, "validation": split.val, "test": split.test}
    if len(folds) > 1:
        parts = {f"{name}, fold 1 of {len(folds)}": ids for name, ids in parts.items()}
    parts |= {f"test: {name}": ids for name, ids in sweep.data.cohorts.items()}
    for name, ids in parts.items():
        samples = [sweep.data.samples[sample_id] for sample_id in ids]
        counts = Counter(trimester(sample.hc_mm) for sample in samples)
        row = {"part": name, "images": len(samples), "exams": len({s.exam_id for s in samples})}
        rows.append(row | {f"trimester {number}": counts[number] for number in (1, 2, 3)})
    return pd.DataFrame(rows)


def _protocol(sweep: Sweep) -> list[str]:
    """How images are ordered, segmenters trained, their weights chosen, and pairs mixed in."""
    config, names = sweep.config, sweep.config.segmenter_names()
    segmenters, lines = {name: config.segmenter_named(name) for name in names}, []
    if DEFAULT in config.sweep.choice:
        lines.append(
            "The order of random images goes exam after exam within a trimester and interleaves "
            "the trimesters."
        )
    for name, settings in segmenters.items():
        whose = "Every trial" if len(names) == 1 else f"Every trial of {name}"
        length = f"{settings.steps} optimiser steps"
        if settings.epochs is not None:
            length = f"{settings.epochs} passes over its images, so more steps with more,"
        says = f"takes {length} of {settings.batch_size} images and its last weights count; no "
        says += "validation label chooses anything."
        if settings.early_stopping_patience is not None:
            n_val = len(sweep.data.split.val)
            says = f"may stop early on {n_val} validation images, which the table counts."
        lines.append(f"{whose} {says}")
    if any(run.node.stage == "gate" for run in sweep.runs.values()):
        shares = sorted({s.synthetic_share for s in segmenters.values() if s.epochs is None})
        mixture = "Real images and synthetic pairs are drawn from one pool."
        if shares:
            said = " or ".join(f"{share:.0%}" for share in shares)
            mixture = f"Synthetic pairs fill {said} of each batch"
            sources = [config.condition(name).source for name in config.sweep.condition]
            is_shared = any(each.is_generated and each.is_pseudo for each in sources)
            mixture += ", a third beside pseudo-labelled images." if is_shared else "."
        generators = [config.generator_named(name) for name in config.generator_names()]
        outlines = "drawn from the ellipses of the images that the generator saw"
        sees_more = any("pseudo" in run.node.upstream for run in sweep.runs.values())
        outlines += ", labelled or outlined by a teacher" if sees_more else ""
        if all(getattr(settings, "draws_outlines", False) for settings in generators):
            outlines = "read from the generated pictures"
        lines.append(
            f"{mixture} Their outlines are {outlines}; the gate's limits come from those images, "
            "its segmenter from the labelled ones."
        )
    return lines


def _provenance(sweep: Sweep) -> dict[str, str]:
    here = provenance()
    paths = [sweep.run_dir(run) / "manifest.json" for run in sweep.runs.values() if run.is_done]
    manifests = [json.loads(path.read_text()) for path in paths if path.exists()]
    # Of the runs, which may have been made elsewhere; of this process where there are none.
    made = [here | manifest for manifest in manifests] or [here]
    code = sorted({code_name(manifest) for manifest in manifests})
    machines = [facts["machine"] for facts in made]
    versions = [
        ", ".join(f"{name} {value}" for name, value in facts["versions"].items() if value)
        for facts in made
    ]
    return {
        "command": here["command"],
        "code": ", ".join(code),
        "mixed code": "runs of several code states" if len(code) > 1 else "no",
        "machine": _each(
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
            f"{machine['system']}"
            for machine in machines
        ),
        "python": _each(machine["python"] for machine in machines),
        "versions": _each(versions),
        "lock": _each(facts["lock_sha256"] or "none" for facts in made),
        "segmenters": ", ".join(sweep.config.segmenter_names()),
    }


def _each(values: Iterable[str]) -> str:
    """Each value once."""
    return "; ".join(sorted(set(values)))


def _runs(sweep: Sweep) -> pd.DataFrame:
    rows = []
    for key, run in sweep.runs.items():
        result = sweep.result(run) if run.is_done else {}
        cost = {"seconds": result.get("seconds"), "peak MiB": result.get("peak_memory_mib")}
        state = "done" if run.is_done else run.state
        rows.append({"run": key, "what": run.node.label, "state": state} | cost)
    return pd.DataFrame(rows)
