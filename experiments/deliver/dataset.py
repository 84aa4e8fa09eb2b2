"""A synthetic set of the store as an image folder for others: pictures, card and Croissant.

The layout stays the one of `synthesis.folder`, so an exported set is also an input here.
"""

import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from datamodules.attribution import CC_BY_URL, HC18_LICENCE
from datamodules.errors import InputError
from datamodules.storage import file_sha256, write_atomic, write_json
from datamodules.synthetic import (
    SyntheticPair,
    pair_paths,
    read_metadata,
    write_metadata,
    write_origin,
)
from experiments.config.paths import TEMPLATES
from experiments.deliver.sidecar import HC18_DATA, OTHER_DATA, PHANTOM_DATA, data_line
from experiments.store.fitted import GENERATOR, GENERATOR_IMAGES
from experiments.store.provenance import code_words
from experiments.store.runs import is_done, read_manifest, read_result
from lightning_modules.generators.stable_diffusion.saved import CONFIG_NAME
from lightning_modules.generators.stable_diffusion.weights import is_hub_name, resolve_base

METADATA = "metadata.jsonl"
_DRAWN = "no image was acquired from a patient; textures are what the generator learned."
# Stage: how its pairs are made, and what is synthetic about them.
_STAGES = {
    "gate": ("drawn by a diffusion model and filtered by a gate", _DRAWN),
    "synthesize": ("drawn by a diffusion model, without a gate", _DRAWN),
    "subset": ("drawn by a diffusion model, as many at random as a gate kept", _DRAWN),
    "import_pairs": (
        "imported from a folder that others made",
        "how the pairs were made is known to those who made them.",
    ),
    "warp": (
        "real images deformed to new head outlines",
        "each image is a real one, deformed; treat it as you would treat the real one.",
    ),
    "phantom": (
        "procedural phantoms on new head outlines",
        "no texture comes from a patient; the outlines follow those of labelled images.",
    ),
}
# Inputs that say what the pictures come from; the others only judge them.
_LINEAGE = ("candidates", "generator", "gate")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**9, "100K<n<1M"))


class _Rights(NamedTuple):
    """Whose images are behind a set."""

    text: str
    license_id: str = "unknown"
    """As the Hugging Face hub spells it."""
    license_url: str | None = None


_IMPORTED = _Rights("Imported: the licence is to be stated by the owner of the imported folder.")
_RIGHTS = {
    HC18_DATA: _Rights(
        "Made from labelled images that are named as HC18's are. Where they are HC18's, shared "
        f"under its licence, CC BY 4.0 ({CC_BY_URL}), with changes: the pictures here are "
        f"generated. {HC18_LICENCE} Where they are not, the licence is their owner's to state.",
        license_id="cc-by-4.0",
        license_url=CC_BY_URL,
    ),
    PHANTOM_DATA: _Rights(
        "Made from procedural phantoms, which are free of licences and of patients."
    ),
    OTHER_DATA: _Rights(
        "Made from images of another source than HC18, whose licence is its owner's to state."
    ),
}


def export_dataset(run_dir: Path, manifest: dict[str, Any], folder: Path) -> None:
    """Write a synthetic set as image/, mask/, metadata.jsonl, README.md and croissant.json.

    Raises:
        InputError: The run is no finished synthetic set, holds no pair or lacks a picture, or the
            runs that it was made from are not in the same store.
    """
    pairs = _pairs(run_dir, stage=manifest["stage"])
    lineage = _lineage(run_dir, manifest)
    facts = _facts(manifest, lineage=lineage, n_pairs=len(pairs))
    facts["sizes"] = [f"{w} x {h} px (width x height)" for h, w in _sizes(run_dir, pairs)]
    for pair in pairs:
        # No links: what leaves the store may be edited, the store may not.
        for path in pair_paths(Path(), pair.sample_id):
            (folder / path).parent.mkdir(exist_ok=True)
            shutil.copyfile(run_dir / path, folder / path)
    facts |= _write_rows(folder / METADATA, pairs)
    facts["metadata_sha256"] = file_sha256(folder / METADATA)
    if "generator" in lineage:
        _copy_origin(folder, *lineage["generator"])
    write_json(folder / "croissant.json", json.loads(_rendered("croissant.json.j2", facts)))
    write_atomic(folder / "README.md", _rendered("dataset_card.md.j2", facts))


def _rendered(template: str, facts: dict[str, Any]) -> str:
    import jinja2

    # Markdown and JSON, not pages: nothing is escaped.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(facts)


def _pairs(run_dir: Path, *, stage: str) -> list[SyntheticPair]:
    if stage not in _STAGES:
        raise InputError(
            f"{run_dir}: a run of stage {stage}, no synthetic set; give one of stage "
            f"{', '.join(_STAGES)}, such as runs/store/gate/ID"
        )
    if not is_done(run_dir):
        raise InputError(f"{run_dir}: not finished; run the sweep to its end, then export")
    metadata = run_dir / METADATA
    if not metadata.is_file():
        raise InputError(f"{run_dir}: {METADATA} is missing; remove the run and make it again")
    pairs = read_metadata(metadata)
    if not pairs:
        raise InputError(f"{run_dir}: an empty synthetic set; nothing to export")
    return pairs


def _sizes(run_dir: Path, pairs: Sequence[SyntheticPair]) -> list[tuple[int, ...]]:
    """(height, width) of the images, each once; all pictures can be read."""
    sizes = set()
    for pair in pairs:
        shapes = []
        for path in pair_paths(run_dir, pair.sample_id):
            picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            if picture is None:
                raise InputError(f"{path}: missing, or no image; make the run again")
            shapes.append(picture.shape)
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{run_dir}: image and mask of {pair.sample_id} differ in size; make the run again"
            )
        sizes.add(shapes[0])
    return sorted(sizes)


def _lineage(run_dir: Path, manifest: dict[str, Any]) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Directory and manifest by stage, of a set and of the runs behind it."""
    store, runs, todo = run_dir.resolve().parents[1], {}, [(run_dir, manifest)]
    while todo:
        folder, about = todo.pop()
        runs[about["stage"]] = folder, about
        for role in _LINEAGE:
            key = about.get("upstream", {}).get(role)
            if key is None or key.split("/")[0] in runs:
                continue
            if not (store / key / "manifest.json").is_file():
                raise InputError(
                    f"{store / key}: missing, and says what {run_dir} was made from; export "
                    "from the store that made it"
                )
            todo.append((store / key, read_manifest(store / key)))
    return runs


def _write_rows(path: Path, pairs: Sequence[SyntheticPair]) -> dict[str, Any]:
    """Write metadata.jsonl without the columns that no pair fills; the names of the others."""
    write_metadata(path, pairs)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    # Parquet, into which the hub turns it, has no column of empty objects.
    columns = [name for name in rows[0] if any(row[name] not in (None, {}, []) for row in rows)]
    lines = [json.dumps({name: row[name] for name in columns}) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    filled = [name for name in columns if all(row[name] is not None for row in rows)]
    return {"columns": ", ".join(f"`{name}`" for name in columns), "filled": filled}


def _copy_origin(folder: Path, run_dir: Path, manifest: dict[str, Any]) -> None:
    """Say which images a generator saw, so that no sweep trains on the set and tests on them."""
    images = run_dir / GENERATOR / GENERATOR_IMAGES
    # Those of earlier versions have none.
    if images.is_file():
        seen = [row["pixels_sha256"] for row in json.loads(images.read_text())]
        write_origin(folder, images_seen=seen, generator=str(manifest["id"]))


def _base_model(run_dir: Path, manifest: dict[str, Any]) -> str | None:
    """The model that a Stable Diffusion started from, without the path on this machine."""
    if "stable_diffusion" not in manifest["content"]:
        return None
    # What the run itself keeps: a sweep's block may say another one than the recipe's section.
    saved = json.loads((run_dir / GENERATOR / CONFIG_NAME).read_text())
    base, _ = resolve_base(saved["config"].get("base_model"))
    return base if is_hub_name(base) else Path(base).name


def _facts(
    manifest: dict[str, Any], *, lineage: dict[str, tuple[Path, dict[str, Any]]], n_pairs: int
) -> dict[str, Any]:
    """What card and Croissant say of a set beside its files."""
    stage = manifest["stage"]
    content = {name: about["content"] for name, (_, about) in lineage.items()}
    seeds = {name: each["seed"] for name, each in content.items() if "seed" in each}
    images = next((each["images"] for each in content.values() if "images" in each), [])
    labels = sorted({str(label) for label, *_ in images})
    behind = {"config": manifest.get("config", {}), "content": {"images": [[i] for i in labels]}}
    made_by, what_is_synthetic = _STAGES[stage]
    generator, gate = lineage.get("generator"), lineage.get("gate")
    return {
        "name": f"sonosweep-{stage}-{str(manifest['id'])[:8]}",
        "description": (
            f"{n_pairs} synthetic pairs of fetal-head ultrasound image and mask: {made_by}. "
            "Written by sonosweep."
        ),
        "what_is_synthetic": what_is_synthetic,
        "rights": _IMPORTED if stage == "import_pairs" else _RIGHTS[data_line(behind)],
        "size_category": next(word for top, word in _SIZES if n_pairs < top),
        "n_pairs": n_pairs,
        "run": manifest,
        "code": code_words(manifest),
        "day": datetime.fromtimestamp(manifest["started"], tz=UTC).date().isoformat(),
        "labels": labels,
        "generator": generator and generator[1],
        "base_model": generator and _base_model(*generator),
        "seeds": [f"{name} {seeds[name]}" for name in sorted(seeds)],
        "gate": read_result(gate[0]) if gate and is_done(gate[0]) else None,
    }
