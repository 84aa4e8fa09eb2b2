"""A synthetic set of the store as an image folder for others: pictures, card and Croissant.

The layout stays the one of `synthesis.folder`, so an exported set is also an input here.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from datamodules.attribution import CC_BY_URL, HC18_LICENCE
from datamodules.errors import InputError
from datamodules.storage import file_sha256, new_folder, write_atomic, write_json
from datamodules.synthetic import SyntheticPair, pair_paths, read_metadata, write_origin
from experiments.config.paths import TEMPLATES
from experiments.deliver.sidecar import HC18_DATA, OTHER_DATA, PHANTOM_DATA, data_line
from experiments.store.fitted import GENERATOR, GENERATOR_IMAGES
from experiments.store.runs import is_done, read_manifest, read_result
from lightning_modules.generators.stable_diffusion.saved import CONFIG_NAME
from lightning_modules.generators.stable_diffusion.weights import resolve_base

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


def export_dataset(run_dir: Path, manifest: dict[str, Any], out: Path) -> None:
    """Write a synthetic set as image/, mask/, metadata.jsonl, README.md and croissant.json.

    Args:
        run_dir: Finished run of a stage that makes pairs, in its store.
        manifest: Its own.
        out: Folder to write; there whole or not at all.

    Raises:
        InputError: The run is no finished synthetic set, holds no pair or lacks a picture, or the
            runs that it was made from are not in the same store.
    """
    pairs, store = _pairs(run_dir, stage=manifest["stage"]), run_dir.parents[1]
    lineage = _lineage(run_dir, manifest)
    base = _base_model(lineage.get("generator"), store=store)
    facts = {
        **_facts(manifest, lineage=lineage, base=base, n_pairs=len(pairs)),
        "sizes": [
            f"{width} x {height} px (width x height)" for height, width in _sizes(run_dir, pairs)
        ],
    }
    with new_folder(out) as folder:
        for pair in pairs:
            # No links: what leaves the store may be edited, the store may not.
            for path in pair_paths(Path(), pair.sample_id):
                (folder / path).parent.mkdir(exist_ok=True)
                shutil.copyfile(run_dir / path, folder / path)
        facts |= _write_rows(folder / METADATA, pairs)
        _copy_origin(folder, generator=facts["generator"], store=store)
        facts["metadata_sha256"] = file_sha256(folder / METADATA)
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


def _lineage(run_dir: Path, manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Manifests by stage of a set and of the runs behind it; a gate's has its `result` too.

    Raises:
        InputError: A run on the way is not in the store.
    """
    store, manifests, todo = run_dir.resolve().parents[1], {}, [(run_dir, manifest)]
    while todo:
        folder, found = todo.pop()
        manifests[found["stage"]] = found
        if found["stage"] == "gate" and is_done(folder):
            found["result"] = read_result(folder)
        for role in _LINEAGE:
            key = found.get("upstream", {}).get(role)
            if key is not None and key.split("/")[0] not in manifests:
                if not (store / key / "manifest.json").is_file():
                    raise InputError(
                        f"{store / key}: missing, and says what {run_dir} was made from; export "
                        "from the store that made it"
                    )
                todo.append((store / key, read_manifest(store / key)))
    return manifests


def _write_rows(path: Path, pairs: Sequence[SyntheticPair]) -> dict[str, Any]:
    """Write metadata.jsonl without the columns that no pair fills; the names of the others."""
    rows = []
    for pair in pairs:
        image, mask = pair_paths(Path(), pair.sample_id)
        rows.append(
            {"file_name": image.as_posix(), "mask_file_name": mask.as_posix(), **asdict(pair)}
        )
    # Parquet, into which the hub turns it, has no column of empty objects.
    empty = (None, {}, (), [])
    columns = [column for column in rows[0] if any(row[column] not in empty for row in rows)]
    lines = [json.dumps({column: row[column] for column in columns}) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    filled = [column for column in columns if all(row[column] is not None for row in rows)]
    return {"columns": ", ".join(f"`{column}`" for column in columns), "filled": filled}


def _copy_origin(folder: Path, *, generator: dict[str, Any] | None, store: Path) -> None:
    """Say which images the generator saw, so that no sweep trains on the set and tests on them."""
    if generator is None:
        return
    images = store / "generator" / str(generator["id"]) / GENERATOR / GENERATOR_IMAGES
    # Those of earlier versions have none.
    if images.is_file():
        seen = [row["pixels_sha256"] for row in json.loads(images.read_text())]
        write_origin(folder, images_seen=seen, generator=str(generator["id"]))


def _base_model(generator: dict[str, Any] | None, *, store: Path) -> str:
    """The model that a Stable Diffusion started from; the default one for other generators."""
    if generator is None:
        return resolve_base(None)[0]
    # What the run itself keeps: a sweep's block may say another one than the recipe's section.
    path = store / "generator" / str(generator["id"]) / GENERATOR / CONFIG_NAME
    try:
        return resolve_base(json.loads(path.read_text())["config"].get("base_model"))[0]
    except (OSError, ValueError, KeyError):
        return resolve_base(generator["config"].get("stable_diffusion", {}).get("base_model"))[0]


def _facts(
    manifest: dict[str, Any], *, lineage: dict[str, dict[str, Any]], base: str, n_pairs: int
) -> dict[str, Any]:
    """What card and Croissant say of a set beside its files."""
    stage = manifest["stage"]
    images = [
        found["content"]["images"] for found in lineage.values() if "images" in found["content"]
    ]
    labels = sorted({str(label) for label, *_ in images[0]}) if images else []
    behind = {"config": manifest.get("config", {}), "content": {"images": [[i] for i in labels]}}
    made_by, what_is_synthetic = _STAGES[stage]
    generator = lineage.get("generator")
    # A name on the hub says where to get it; of a path on this machine the end is enough.
    is_hub = base.count("/") == 1 and not base.startswith(("/", ".", "~"))
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
        "day": datetime.fromtimestamp(manifest["started"], tz=UTC).date().isoformat(),
        "labels": labels,
        "generator": generator,
        "base_model": base if is_hub else Path(base).name,
        "seeds": [
            f"{stage} {found['content']['seed']}"
            for stage, found in sorted(lineage.items())
            if "seed" in found["content"]
        ],
        "gate": lineage.get("gate", {}).get("result"),
    }
