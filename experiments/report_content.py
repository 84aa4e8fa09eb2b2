"""Gather what a sweep's report shows: numbers from its tables, pictures from its runs."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from datamodules.annotation import read_annotation, read_image
from datamodules.samples import Sample, trimester
from datamodules.synthetic import SyntheticPair, pair_paths, read_metadata
from experiments.config import resolved
from experiments.figures import figure_trimesters, png_bytes
from experiments.findings import pick_cases
from experiments.pictures import PREDICTION_RGB, REFERENCE_RGB, overlay_contours
from experiments.predictions import read_prediction
from experiments.provenance import provenance
from experiments.report import Candidates, Picture, ReportContent
from experiments.sweep import NodeRun, Sweep
from experiments.tables import CONDITION_LABELS, PROMPT_LABELS

N_PAIRS = 6
N_REJECTED = 8
N_COPIES = 3


def gather(
    sweep: Sweep, *, per_image: pd.DataFrame, results: pd.DataFrame, figure_png: bytes
) -> ReportContent:
    """Put a sweep's report together from what is finished."""
    kind = {"hc18": "hc18", "phantom": "phantom"}.get(sweep.data.name, "other")
    predictions, predictions_note = _predictions(sweep, per_image)
    gates = [run for run in sweep.runs.values() if run.node.stage == "gate" and _finished(run)]
    return ReportContent(
        title=f"{sweep.config.name}: fetal head segmentation with few labels",
        data_kind=kind,
        results=results,
        per_image=per_image,
        figures=_figures(sweep, per_image, figure_png=figure_png),
        real=_real_pairs(sweep),
        synthetic=_synthetic_pairs(sweep, gates),
        predictions=predictions,
        predictions_note=predictions_note,
        candidates=[
            _candidates(sweep, run)
            # One that accepted nothing has failed, and its reasons are what one wants to see.
            for run in sweep.runs.values()
            if run.node.stage == "gate" and (_run_dir(sweep, run) / "rejected.jsonl").is_file()
        ],
        near_copies=_near_copies(sweep, gates),
        near_copies_note=_near_copies_note(sweep, gates),
        data_facts=_data_facts(sweep),
        data_summary=_data_summary(sweep),
        protocol=_protocol(sweep),
        provenance=_provenance(sweep),
        config_yaml=yaml.safe_dump(resolved(sweep.config), sort_keys=False),
        runs=_runs(sweep),
    )


def _finished(run: NodeRun) -> bool:
    return run.state in ("done", "reused")


def _run_dir(sweep: Sweep, run: NodeRun) -> Path:
    return sweep.store.run_dir(run.node.stage, run.node.id)


def _outlined(sample: Sample) -> np.ndarray:
    mask = read_annotation(sample.annotation_path, filled_bias_px=sample.filled_bias_px).mask
    return overlay_contours(read_image(sample.image_path), [(mask, REFERENCE_RGB)])


def _figures(sweep: Sweep, per_image: pd.DataFrame, *, figure_png: bytes) -> list[Picture]:
    figures = [
        Picture(
            image=figure_png,
            caption="Dice against the number of real images; bands are 95 % intervals over exams.",
        )
    ]
    if per_image["trimester"].notna().any():
        prompt = sweep.config.evaluation.prompts[0]
        figure = figure_trimesters(per_image, prompt=prompt, test_cohort=sweep.data.name)
        figures.append(
            Picture(
                image=png_bytes(figure),
                caption="Dice by trimester at the smallest and the largest amount.",
            )
        )
    return figures


def _real_pairs(sweep: Sweep) -> list[Picture]:
    ids = list(sweep.data.view.split.train)[:N_PAIRS]
    return [
        Picture(image=_outlined(sweep.data.samples[sample_id]), caption=sample_id)
        for sample_id in ids
    ]


def _synthetic_pairs(sweep: Sweep, gates: list[NodeRun]) -> list[Picture]:
    pictures = []
    for run in gates[:1]:
        folder = _run_dir(sweep, run)
        for pair in read_metadata(folder / "metadata.jsonl")[:N_PAIRS]:
            pictures.append(_pair_picture(folder, pair))
    return pictures


def _pair_picture(folder: Path, pair: SyntheticPair, *, caption: str | None = None) -> Picture:
    image_path, mask_path = pair_paths(folder, pair.sample_id)
    mask = read_annotation(mask_path).mask
    picture = overlay_contours(read_image(image_path), [(mask, REFERENCE_RGB)])
    if caption is None:
        agreement = pair.gate.get("agreement")
        caption = pair.sample_id
        if agreement is not None:
            caption += f", agreement {agreement:.2f}"
    return Picture(image=picture, caption=caption)


def _candidates(sweep: Sweep, run: NodeRun) -> Candidates:
    folder = _run_dir(sweep, run)
    rejected = read_metadata(folder / "rejected.jsonl")
    n_kept = len(read_metadata(folder / "metadata.jsonl"))
    source = sweep.store.root / "store" / run.node.upstream["candidates"]
    # One of each kind of reason first, so that the pictures show what the counts say.
    kinds = [_kind_of(pair.reasons[0]) for pair in rejected]
    order = sorted(range(len(rejected)), key=lambda i: (kinds[:i].count(kinds[i]), i))
    return Candidates(
        n_made=n_kept + len(rejected),
        n_kept=n_kept,
        reasons=dict(Counter(kinds)),
        rejected=[
            _pair_picture(source, rejected[i], caption="; ".join(rejected[i].reasons))
            for i in order[:N_REJECTED]
        ],
        name=run.node.label,
    )


def _kind_of(reason: str) -> str:
    for kind in ("agreement with the segmenter", "mean intensity", "intensity spread"):
        if reason.startswith(kind):
            return kind
    return "near-copy of a real image"


def _near_copies(sweep: Sweep, gates: list[NodeRun]) -> list[tuple[Picture, Picture]]:
    pairs = []
    for run in gates[:1]:
        folder = _run_dir(sweep, run)
        kept = read_metadata(folder / "metadata.jsonl")
        kept.sort(key=lambda pair: -pair.gate["similarity"])
        for pair in kept[:N_COPIES]:
            nearest = sweep.data.samples[pair.gate["nearest"]]
            text = f"{pair.sample_id}: correlation {pair.gate['similarity']:.2f}"
            pairs.append(
                (
                    _pair_picture(folder, pair, caption=text),
                    Picture(image=_outlined(nearest), caption=f"nearest: {nearest.sample_id}"),
                )
            )
    return pairs


def _near_copies_note(sweep: Sweep, gates: list[NodeRun]) -> str:
    if not gates:
        return ""
    limits = sweep.store.result("gate", gates[0].node.id)["limits"]
    gate = sweep.config.gate
    below = "kept candidates are below it" if gate.enabled else "no limit was kept to"
    return (
        "Similarity is the correlation at 32x48 pixels with the nearest image that the generator "
        f"was fitted on, mirrored or not. The limit is {limits['max_similarity']:.2f}: the "
        f"{gate.copy_quantile:.0%} quantile of the same measure between real images of different "
        f"exams, or {gate.copy_min_correlation:.2f} if that is more; {below}."
    )


def _predictions(sweep: Sweep, per_image: pd.DataFrame) -> tuple[dict[str, list[Picture]], str]:
    """The trial with the most images of the last condition, under the first prompt."""
    cohort, prompt = sweep.data.name, sweep.config.evaluation.prompts[0]
    finished = [
        s
        for s in sweep.plan.trials
        if not s.is_control
        and (cohort, prompt) in s.score_keys
        and _finished(sweep.runs[s.score_keys[cohort, prompt]])
    ]
    if not finished:
        return {}, ""
    spec = max(finished, key=lambda s: (s.condition != "real", s.n_real))
    run = sweep.runs[spec.score_keys[cohort, prompt]]
    here = per_image[
        (per_image["condition"] == spec.condition)
        & (per_image["n_real"] == spec.n_real)
        & (per_image["support"] == spec.support)
        & (per_image["seed"] == spec.seed)
        & (per_image["generator_seed"] == spec.generator_seed)
        & (per_image["test_cohort"] == cohort)
        & (per_image["prompt"] == prompt)
    ]
    groups: dict[str, list[Picture]] = {}
    for _, case in pick_cases(here).iterrows():
        sample = sweep.data.samples[case["sample_id"]]
        annotation = read_annotation(sample.annotation_path, filled_bias_px=sample.filled_bias_px)
        predicted = read_prediction(
            _run_dir(sweep, run),
            prompt=prompt,
            sample_id=sample.sample_id,
            size_hw=annotation.mask.shape,
        )
        picture = overlay_contours(
            read_image(sample.image_path),
            [(annotation.mask, REFERENCE_RGB), (predicted, PREDICTION_RGB)],
        )
        caption = f"{sample.sample_id}: Dice {100 * case['dice']:.1f} %"
        groups.setdefault(str(case["which"]).capitalize(), []).append(
            Picture(image=picture, caption=caption)
        )
    condition = CONDITION_LABELS.get(spec.condition, spec.condition)
    note = f"{condition}, {spec.n_real} real images, {cohort}, {PROMPT_LABELS.get(prompt, prompt)}."
    return groups, note


def _data_facts(sweep: Sweep) -> dict[str, str]:
    index = sweep.data.indices[sweep.data.name]
    kinds = Counter(row.kind for row in index.rows)
    subset = sweep.config.data.subset
    return {
        "cohort": sweep.data.name,
        "subset": f"{subset.name}, {len(index.rows)} images",
        "exams": str(len({row.exam_id for row in index.rows})),
        "annotations": ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())),
        "near-duplicate pairs": str(len(index.duplicates)),
    }


def _data_summary(sweep: Sweep) -> pd.DataFrame:
    split = sweep.data.view.split
    rows = []
    parts = {"train": split.train, "validation": split.val, "test": split.test}
    parts |= {f"test: {name}": ids for name, ids in sweep.data.view.cohorts.items()}
    for name, ids in parts.items():
        samples = [sweep.data.samples[sample_id] for sample_id in ids]
        row: dict[str, Any] = {
            "part": name,
            "images": len(samples),
            "exams": len({sample.exam_id for sample in samples}),
        }
        counts = Counter(trimester(sample.hc_mm) for sample in samples)
        row |= {f"trimester {number}": counts[number] for number in (1, 2, 3)}
        rows.append(row)
    return pd.DataFrame(rows)


def _protocol(sweep: Sweep) -> list[str]:
    config = sweep.config
    patience = config.segmenter.early_stopping_patience
    n_val = len(sweep.data.view.split.val)
    stopping = (
        f"Every trial takes {config.segmenter.steps} optimiser steps of "
        f"{config.segmenter.batch_size} images and its last weights count; no validation label "
        "chooses anything."
        if patience is None
        else f"Trials stop early on {n_val} validation images, which the table counts."
    )
    lines = [
        "Train, validation and test are disjoint by exam; exams that share a near-duplicate image "
        "stay together. The lists of ids stand in split.json beside this file.",
        "Amounts are nested: the images of a smaller amount are among those of a larger one. Their "
        "order goes exam after exam within a trimester and interleaves the trimesters.",
        stopping,
        "Test images choose nothing. Scores are taken at the original image size.",
        "The whole-image prompt leaks nothing about the head. Boxes are taken from the reference "
        "mask, so they do: the row without an image shows how much.",
    ]
    if any(run.node.stage == "gate" for run in sweep.runs.values()):
        share = config.segmenter.synthetic_share
        lines.append(
            f"Synthetic pairs fill {share:.0%} of each batch. Their outlines are drawn from the "
            "ellipses of the generator's own labelled images; the gate's limits and its segmenter "
            "come from the same images."
        )
    return lines


def _provenance(sweep: Sweep) -> dict[str, str]:
    facts = provenance()
    machine, versions = facts["machine"], facts["versions"]
    shas = set()
    for run in sweep.runs.values():
        path = _run_dir(sweep, run) / "manifest.json"
        if _finished(run) and path.exists():
            manifest = json.loads(path.read_text())
            shas.add((manifest["git_sha"] or "none", manifest["git_dirty_sha256"]))
    code = sorted(f"{sha[:12]}{' + uncommitted ' + dirty if dirty else ''}" for sha, dirty in shas)
    return {
        "command": facts["command"],
        "code": ", ".join(code),
        "mixed code": "runs of several code states" if len(code) > 1 else "no",
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['system']}",
        "python": machine["python"],
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items() if value),
        "lock": facts["lock_sha256"] or "none",
        "segmenter": sweep.config.segmenter.backbone,
    }


def _runs(sweep: Sweep) -> pd.DataFrame:
    rows = []
    for run in sweep.runs.values():
        result = sweep.store.result(run.node.stage, run.node.id) if _finished(run) else {}
        rows.append(
            {
                "run": f"{run.node.stage}/{run.node.id}",
                "what": run.node.label,
                "state": "done" if _finished(run) else run.state,
                "seconds": result.get("seconds"),
                "peak MiB": result.get("peak_memory_mib"),
            }
        )
    return pd.DataFrame(rows)
