"""Masks made elsewhere, scored by the protocol of our own evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Console

from datamodules.annotation import image_of
from datamodules.errors import InputError
from datamodules.layouts import LAYOUTS, layout_of
from datamodules.mask_folder import find_masks, read_mask, some_names
from datamodules.samples import Sample
from datamodules.split_file import SplitFile
from datamodules.storage import content_key, file_sha256, write_atomic, write_json
from experiments.store.columns import OUTPUTS
from experiments.store.screen import print_table

if TYPE_CHECKING:
    import pandas as pd

MISSING = ("refuse", "empty")
_OUTLINE_GAP = 0.3
"""Dice of the ellipse above that of the mask, from which on the mask is called an outline."""
PROMPT = "as_given"
"""Prompt of rows whose masks were made elsewhere: what the model was told is not known."""

# Column of results.csv, words for a person, factor, digits.
_LINES = (
    ("dice_trimester_weighted_mean", "Dice, trimester-weighted mean (%)", 100, 2),
    ("dice_mean", "Dice, mean (%)", 100, 2),
    ("dice_median", "Dice, median (%)", 100, 2),
    ("dice_share_below_090", "images below Dice 0.9 (%)", 100, 1),
    ("dice_256_mean", "Dice at 256x256, mean (%)", 100, 2),
    ("hausdorff_mm_mean", "Hausdorff distance, mean (mm)", 1, 2),
    ("hc_err_mm_mean", "HC difference DF, mean (mm)", 1, 2),
    ("hc_abs_err_mm_mean", "absolute HC difference ADF, mean (mm)", 1, 2),
    ("hc_abs_err_mm_p95", "ADF, 95th percentile (mm)", 1, 2),
)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Scores of a folder of masks."""

    where: str
    """Which images were scored, in words."""
    found: dict[str, Any]
    """What score.json holds: measures by their column of results.csv, without those that cannot be
    measured, of the masks as they are and under `ellipse` of the ellipses fitted to them; and lists
    of images. `missing` have no file and `empty` no foreground; `no_head`, with its size, has a
    mask that fills the image or gives no ellipse. Without an ellipse the circumference is 0 mm.
    """
    per_image: "pd.DataFrame"
    results: "pd.DataFrame"
    """A row for each of `OUTPUTS`, with the columns of a sweep's results.csv."""


def read_references(root: Path, *, layout: str) -> list[Sample]:
    """Annotated samples of a folder.

    Raises:
        InputError: For a folder without annotations, or one that is not of the layout.
    """
    row = LAYOUTS[layout_of(root, name=layout)]
    if row.is_at(root) and not row.has_annotations(root):
        raise InputError(
            f"{root}: no reference masks, so nothing can be scored; segment its images with "
            f"sonosweep submit RUN --test-root {root} --masks DIR"
        )
    return row.read(root)


def score_folder(
    predictions: Path,
    *,
    samples: Sequence[Sample],
    name: str,
    split: SplitFile | None = None,
    missing: Literal["refuse", "empty"] = "refuse",
    notes: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Score the masks of a folder, and the ellipses fitted to them, at the size of the images.

    Args:
        predictions: Folder of PNG masks `<id>.png`, `<id>_Annotation.png` or `<id>_mask.png`.
        samples: Annotated samples of one cohort; with `split` its test images alone are scored, of
            a cross-test those of every fold.
        name: Condition under which the scores are filed.
        missing: `empty` counts an image without a mask as an empty prediction, Dice 0.
        notes: What is known of the samples, before what is found here.
        progress: Called with (images scored, images in all).

    Raises:
        InputError: A mask is missing, of another size than its image, or no mask; by name.
    """
    chosen = {sample.sample_id: sample for sample in samples}
    if split is not None:
        split.check_against(samples)
        chosen = {sample_id: chosen[sample_id] for sample_id in split.test_ids}
    files, not_read = find_masks(predictions, sample_ids=list(chosen), known=samples)
    absent = [sample_id for sample_id in chosen if sample_id not in files]
    if absent and missing == "refuse":
        raise InputError(
            f"{predictions}: {len(absent)} of {len(chosen)} images have no mask "
            f"({some_names(absent)}); add them, name the images by --split, or count them as "
            "Dice 0 by --missing empty"
        )
    rows, named = _score_rows(chosen, files=files, progress=progress)
    if outlines := named["outlines"]:
        not_read.append(
            f"{len(outlines)} masks look like outlines, whose ellipses fit and whose areas do not "
            f"({some_names(outlines)}); a mask is a filled head"
        )
    hashes = [[i, file_sha256(files[i]) if i in files else None] for i in sorted(chosen)]
    keys = {
        "trial_id": content_key(hashes),
        "condition": name,
        "test_cohort": samples[0].cohort,
        "prompt": PROMPT,
        "draw": 0,
    }
    per_image, results = _tabulate([keys | row for row in rows])
    facts = ("name", "version", "sha256")
    found = {
        "name": name,
        "trial_id": keys["trial_id"],
        "cohort": keys["test_cohort"],
        "split": None if split is None else {key: getattr(split, key) for key in facts},
        **_measured(results),
        "missing": absent,
        "empty": named["empty"],
        "no_head": named["no_head"],
        "notes": [*notes, *not_read],
    }
    where = _where(samples[0].cohort, split=split)
    return Score(where=where, found=found, per_image=per_image, results=results)


def _measured(results: "pd.DataFrame") -> dict[str, Any]:
    """What results.csv says of the masks and of their ellipses; no mm without pixel sizes."""
    mask, ellipse = (results.set_index("output").loc[output] for output in OUTPUTS)
    of_mask, of_ellipse = (
        {name: float(row[name]) for name, *_ in _LINES if not np.isnan(row[name])}
        for row in (mask, ellipse)
    )
    return {
        "n_images": int(mask["n_images"]),
        "n_exams": int(mask["n_exams"]),
        **of_mask,
        "ellipse": {"n_not_fitted": int(ellipse["n_not_fitted"]), **of_ellipse},
        "trimesters_missing": mask["trimesters_missing"],
    }


def _score_rows(
    samples: Mapping[str, Sample],
    *,
    files: Mapping[str, Path],
    progress: Callable[[int, int], None] | None,
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Rows of per_image.csv, and the images whose masks are `empty`, `no_head` or `outlines`."""
    # Here, because it imports torch: a wrong folder is refused before that.
    from experiments.stages.evaluation import Scorer

    scorer = Scorer(samples=samples, frame_hw=(256, 256), mode="pad")
    rows: list[dict[str, Any]] = []
    named: dict[str, list[str]] = {"empty": [], "no_head": [], "outlines": []}
    for done, (sample_id, sample) in enumerate(samples.items(), start=1):
        size_hw = image_of(sample).shape
        reference_hw = scorer.reference(sample_id).shape
        if reference_hw != size_hw:
            raise InputError(
                f"{sample.annotation_path}: {reference_hw[1]}x{reference_hw[0]} px, but its image "
                f"has {size_hw[1]}x{size_hw[0]}; export both at one size"
            )
        mask = np.zeros(size_hw, np.uint8)
        if sample_id in files:
            mask = read_mask(files[sample_id], size_hw=size_hw)
        own, ellipse = found = scorer.rows(sample_id, mask)
        rows += found
        if sample_id in files and not mask.any():
            named["empty"].append(sample_id)
        elif mask.all():
            named["no_head"].append(f"{sample_id} (the whole image)")
        elif mask.any() and (own.get("hc_pred_mm") == 0 or not ellipse["fitted"]):
            named["no_head"].append(f"{sample_id} ({mask.sum()} px)")
        if ellipse["dice"] - own["dice"] > _OUTLINE_GAP:
            named["outlines"].append(sample_id)
        if progress is not None:
            progress(done, len(samples))
    return rows, named


def _tabulate(rows: Sequence[Mapping[str, Any]]) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """Rows of per_image.csv, and those of results.csv."""
    import pandas as pd

    from experiments.results.rows import AXIS_COLUMNS, KEYS
    from experiments.results.statistics import MEASURES, aggregate
    from experiments.store.columns import PER_IMAGE

    columns = list(dict.fromkeys([*KEYS, *PER_IMAGE]))
    per_image = pd.DataFrame(list(rows), columns=columns)
    per_image = per_image.astype(dict.fromkeys(MEASURES, "float64"))
    # Which segmenter or generator made the masks is not known.
    per_image[list(AXIS_COLUMNS)] = ""
    return per_image, aggregate(per_image)


def print_score(score: Score, console: Console) -> None:
    """Print a small table, and below it what was counted as an empty prediction."""
    console.print(f"{score.found['name']} on {score.where}", markup=False, soft_wrap=True)
    print_table(console, ("", *OUTPUTS), _table(score.found), numbers=OUTPUTS)
    for sentence in _sentences(score.found):
        console.print(f"- {sentence}", markup=False, soft_wrap=True)


def write_score(score: Score, folder: Path) -> None:
    """Write per_image.csv, results.csv, score.json and summary.md into a folder."""
    score.per_image.to_csv(folder / "per_image.csv", index=False)
    score.results.to_csv(folder / "results.csv", index=False)
    write_json(folder / "score.json", score.found)
    write_atomic(folder / "summary.md", _markdown(score))


def _table(found: Mapping[str, Any]) -> list[list[str]]:
    """A label and a text for each of `OUTPUTS`, line by line."""
    lines = [[name, *[str(found[f"n_{name}"])] * len(OUTPUTS)] for name in ("images", "exams")]
    for name, label, factor, digits in _LINES:
        if name in found:
            values = (found[name], found["ellipse"][name])
            lines.append([label, *(f"{value * factor:.{digits}f}" for value in values)])
    return lines


def _where(cohort: str, *, split: SplitFile | None) -> str:
    if split is None:
        return f"all annotated images of {cohort}"
    part = f"the test parts of all {len(split.folds)} folds" if split.folds else "the test part"
    return f"{part} of {cohort}, split {split.name} {split.version} (sha256 {split.sha256:.16})"


def _sentences(found: Mapping[str, Any]) -> list[str]:
    """What the reader should know; the first ones name what was counted as empty."""
    said = list(found["notes"])
    if missing := found["missing"]:
        said.append(f"{len(missing)} images have no mask, counted as empty: {', '.join(missing)}")
    if empty := found["empty"]:
        said.append(f"{len(empty)} masks are empty: {', '.join(empty)}")
    if missing or empty:
        zero = "Dice 0, circumference 0 mm, Hausdorff distance the image's diagonal"
        said.append(f"an empty prediction is never left out: {zero}")
    if no_head := found["no_head"]:
        said.append(
            f"{len(no_head)} masks are no heads: {', '.join(no_head)}; where no ellipse fits the "
            "outline they count with a circumference of 0 mm"
        )
    absent = found["trimesters_missing"]
    if absent and "dice_trimester_weighted_mean" in found:
        said.append(f"no image of trimester {absent}; the other weights were scaled up")
    if not_fitted := found["ellipse"]["n_not_fitted"]:
        said.append(f"{not_fitted} masks give no ellipse: their own scores stand in its column")
    if "hc_abs_err_mm_mean" not in found:
        said.append("no pixel sizes: measures in mm are absent")
    return said


def _markdown(score: Score) -> str:
    head = [f"# {score.found['name']}", "", f"Scored on {score.where}, at the original size.", ""]
    rows = ["| " + " | ".join(row) + " |" for row in _table(score.found)]
    ends = ["", f"Id of the masks: {score.found['trial_id']}", ""]
    notes = [f"- {sentence}" for sentence in _sentences(score.found)]
    lines = [*head, "| measure | mask | ellipse |", "|---|---|---|", *rows, *ends, *notes]
    return "\n".join(lines).rstrip() + "\n"
