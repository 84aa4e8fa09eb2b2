"""What a report shows of synthetic sets: pairs, the gate, fidelity and near copies."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from datamodules.annotation import annotation_of, image_of, read_annotation, read_image
from datamodules.samples import Sample
from datamodules.synthetic import SyntheticPair, pair_paths, read_metadata
from experiments.config.conditions import CONDITIONS, condition_label
from experiments.results.axes import axis_label, prompt_label, shown_axes
from experiments.results.cells import cell_means
from experiments.results.pictures import REFERENCE_RGB, overlay_contours
from experiments.results.report import Picture
from experiments.results.rows import with_amounts
from experiments.runner.sweep import NodeRun, Sweep
from experiments.stages.fidelity_table import fidelity_rows

_N_PAIRS, _N_REJECTED, _N_COPIES = 6, 8, 3


def outlined(sample: Sample, *, caption: str | None = None) -> Picture:
    """An image with its reference outline, where it has one; its id stands below where nothing else
    is said.
    """
    has_outline = sample.annotation_path is not None
    outlines = [(annotation_of(sample).mask, REFERENCE_RGB)] if has_outline else []
    image = overlay_contours(image_of(sample), outlines)
    return Picture(image=image, caption=sample.sample_id if caption is None else caption)


def _pair_picture(folder: Path, pair: SyntheticPair, *, caption: str | None = None) -> Picture:
    image_path, mask_path = pair_paths(folder, pair.sample_id)
    outline = (read_annotation(mask_path).mask, REFERENCE_RGB)
    if caption is None:
        agreement = pair.gate.get("agreement")
        caption = pair.sample_id + ("" if agreement is None else f", agreement {agreement:.2f}")
    return Picture(image=overlay_contours(read_image(image_path), [outline]), caption=caption)


def _couple(
    folder: Path, pair: SyntheticPair, real: Sample, *, measured: str
) -> tuple[Picture, Picture]:
    """A synthetic image with how near it is, and the real image that it is nearest to."""
    made = _pair_picture(folder, pair, caption=f"{pair.sample_id}: {measured}")
    return made, outlined(real, caption=f"nearest: {real.sample_id}")


def _done(sweep: Sweep, *stages: str) -> list[NodeRun]:
    return [run for run in sweep.runs.values() if run.node.stage in stages and run.is_done]


def candidates(sweep: Sweep) -> list[dict[str, Any]]:
    """What each gate kept and refused; one that accepted nothing failed, and is shown as well."""
    found = []
    for run in sweep.runs.values():
        folder = sweep.run_dir(run)
        if run.node.stage != "gate" or not (folder / "rejected.jsonl").is_file():
            continue
        rejected = read_metadata(folder / "rejected.jsonl")
        n_kept = len(read_metadata(folder / "metadata.jsonl"))
        source = sweep.store.root / "store" / run.node.upstream["candidates"]
        # One of each kind of reason first, so that the pictures show what the counts say.
        counts, ranked = Counter[str](), []
        for pair in rejected:
            kind = _kind_of(pair.reasons[0])
            ranked.append((counts[kind], pair))
            counts[kind] += 1
        shown = [pair for _, pair in sorted(ranked, key=lambda each: each[0])[:_N_REJECTED]]
        found.append(
            {
                "name": run.node.label,
                "n_made": n_kept + len(rejected),
                "n_kept": n_kept,
                "reasons": dict(counts),
                "rejected": [
                    _pair_picture(source, pair, caption="; ".join(pair.reasons)) for pair in shown
                ],
            }
        )
    return found


def _kind_of(reason: str) -> str:
    kinds = ("agreement with the segmenter", "mean intensity", "intensity spread")
    return next((kind for kind in kinds if reason.startswith(kind)), "near-copy of a real image")


def gate_effect(results: pd.DataFrame) -> pd.DataFrame:
    """Dice downstream of the gate, of no gate, and of a random subset of the gate's size.

    No rows where a sweep does not have both the gate and another choice of candidates.
    """
    rows = with_amounts(results)
    done = rows[rows["status"] == "done"]
    done = done[done["condition"].isin(_with_another_gate(done["condition"]))]
    if done.empty:
        return pd.DataFrame()
    shown = shown_axes(done)
    where = ["test_cohort", "prompt", "amount", *shown, "condition"]
    columns = ["dice_mean", "dice_trimester_weighted_mean", "n_synthetic"]
    means = cell_means(done, columns, by=where)
    return pd.DataFrame(
        {
            "cohort": means["test_cohort"],
            "prompt": [prompt_label(name) for name in means["prompt"]],
            "real": means["amount"],
            **{name: [axis_label(name, each) for each in means[name]] for name in shown},
            "pairs from": means["condition"].map(condition_label),
            "pairs": means["n_synthetic"].map("{:.0f}".format),
            "weighted Dice %": (100 * means["dice_trimester_weighted_mean"]).map("{:.1f}".format),
            "Dice %": (100 * means["dice_mean"]).map("{:.1f}".format),
            "trials": means["n_trials"].map(str),
        }
    )


def _with_another_gate(present: Iterable[str]) -> list[str]:
    """Conditions that are there beside another one that differs from them by its gate alone."""
    rows = {name: CONDITIONS[name].factors for name in present if name in CONDITIONS}
    gated = {n: repr(replace(row, gate="on")) for n, row in rows.items() if row.source.is_generated}
    return [name for name in gated if [*gated.values()].count(gated[name]) > 1]


def fidelity_views(sweep: Sweep) -> list[dict[str, Any]]:
    """The measured sets, each beside its control of held-out real images."""
    views, samples = [], sweep.data.samples
    for run in _done(sweep, "fidelity"):
        summary = json.loads((sweep.run_dir(run) / "fidelity.json").read_text())
        folder = sweep.store.root / "store" / run.node.upstream["pairs"]
        known = {pair.sample_id: pair for pair in read_metadata(folder / "metadata.jsonl")}
        couples = [
            _couple(folder, known[near["sample_id"]], samples[near["train_id"]],
                    measured=f"distance {near['distance']:.3g}")
            for near in summary["nearest_pairs"]["pixels"]["synthetic"][:_N_COPIES]
            if near["sample_id"] in known and near["train_id"] in samples
        ]  # fmt: skip
        view = {"name": run.node.label, "rows": fidelity_rows(summary), "nearest": couples}
        views.append(view | {"notes": summary["notes"]})
    return views


def sample_pairs(sweep: Sweep) -> list[Picture]:
    """Some accepted pairs of the first generator, or of the pairs that others made."""
    folders = [sweep.run_dir(run) for run in _done(sweep, "gate", "import_pairs")[:1]]
    return [
        _pair_picture(folder, pair)
        for folder in folders
        for pair in read_metadata(folder / "metadata.jsonl")[:_N_PAIRS]
    ]


def real_pairs(sweep: Sweep) -> list[Picture]:
    """Some real images of the train part."""
    return [outlined(sweep.data.samples[name]) for name in sweep.data.split.train[:_N_PAIRS]]


def near_copies(sweep: Sweep) -> tuple[list[tuple[Picture, Picture]], str]:
    """The accepted pairs that are most similar to an image of the generator, beside it; and how
    similarity is measured and where its limit lies.
    """
    gates = _done(sweep, "gate")
    if not gates:
        return [], ""
    folder, couples = sweep.run_dir(gates[0]), []
    kept = read_metadata(folder / "metadata.jsonl")
    for pair in sorted(kept, key=lambda pair: -pair.gate["similarity"])[:_N_COPIES]:
        nearest = pair.gate["nearest"]
        real = (sweep.data.samples | sweep.data.unlabelled)[nearest]
        near = f"correlation {pair.gate['similarity']:.2f}"
        couples.append(_couple(folder, pair, real, measured=near))
    limits, gate = sweep.result(gates[0])["limits"], sweep.config.gate
    below = "kept candidates are below it" if gate.enabled else "no limit was kept to"
    return couples, (
        "Similarity is the correlation at 32x48 pixels with the nearest image that the generator "
        f"was fitted on, mirrored or not. The limit is {limits['max_similarity']:.2f}: the "
        f"{gate.copy_quantile:.0%} quantile of the same measure between real images of different "
        f"exams, or {gate.copy_min_correlation:.2f} if that is more; {below}."
    )
