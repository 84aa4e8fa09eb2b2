"""A synthetic set of the store as an image folder for others: pictures, card and Croissant.

The layout stays the one of `synthesis.folder`, so an exported set is also an input here.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2

from datamodules.attribution import CC_BY_URL, HC18_LICENCE
from datamodules.errors import InputError
from datamodules.storage import commit_folder, file_sha256, require_new, write_atomic, write_json
from datamodules.synthetic import SyntheticPair, pair_paths, read_metadata
from experiments.config.paths import TEMPLATES
from experiments.deliver.croissant import METADATA, croissant
from experiments.deliver.sidecar import OTHER_DATA, PHANTOM_DATA, data_line
from experiments.store.runs import read_manifest

if TYPE_CHECKING:
    import jinja2

VERSION = "1.0.0"
_MADE_BY = {
    "gate": "drawn by a diffusion model and filtered by a gate",
    "synthesize": "drawn by a diffusion model, without a gate",
    "subset": "drawn by a diffusion model, as many at random as a gate kept",
    "import_pairs": "imported from a folder that others made",
    "warp": "real images deformed to new head outlines",
    "phantom": "procedural phantoms on new head outlines",
}
_SYNTHETIC = {
    "import_pairs": "how the pairs were made is known to those who made them.",
    "warp": "each image is a real one, deformed; treat it as you would treat the real one.",
    "phantom": "no texture comes from a patient; the outlines follow those of labelled images.",
}
_DRAWN = "no image was acquired from a patient; textures are what the generator learned."
# Inputs that say what the pictures come from; the others only judge them.
_LINEAGE = ("candidates", "generator", "gate")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**9, "100K<n<1M"))


class _Lineage(NamedTuple):
    """Manifests of the runs behind a set, by stage, and what a gate counted."""

    manifests: dict[str, dict[str, Any]]
    labels: tuple[str, ...]
    """Ids of the labelled images that the set was made from."""
    gate_result: Mapping[str, Any]


class _Rights(NamedTuple):
    """Whose images are behind a set."""

    text: str
    license_id: str = "unknown"
    """As the Hugging Face hub spells it."""
    license_url: str | None = None


_IMPORTED = _Rights("Imported: the licence is to be stated by the owner of the imported folder.")
_RIGHTS = {
    HC18_LICENCE: _Rights(
        f"Made from labelled images of HC18 and shared under its licence, CC BY 4.0 ({CC_BY_URL}), "
        f"with changes: the pictures here are generated. {HC18_LICENCE}",
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


def export_dataset(run_dir: Path, out: Path) -> None:
    """Write a synthetic set as image/, mask/, metadata.jsonl, README.md and croissant.json.

    Args:
        run_dir: Finished run of a stage that makes pairs, in its store.
        out: Folder to write; there whole or not at all.

    Raises:
        InputError: `out` exists, the run is no finished synthetic set, holds no pair or lacks a
            picture, or the runs that it was made from are not in the same store.
    """
    require_new(out)
    manifest = read_manifest(run_dir)
    stage = manifest["stage"]
    pairs = _pairs(run_dir, stage=stage)
    sizes = _sizes(run_dir, pairs)
    lineage = _lineage(run_dir, manifest)
    images = {"images": [[label] for label in lineage.labels]}
    data = data_line({"config": manifest.get("config", {}), "content": images})
    rights = _IMPORTED if stage == "import_pairs" else _RIGHTS[data]
    name = f"sonosweep-{stage}-{str(manifest.get('id', run_dir.name))[:8]}"
    description = (
        f"{len(pairs)} synthetic pairs of fetal-head ultrasound image and mask: {_MADE_BY[stage]}. "
        "Written by sonosweep."
    )
    with commit_folder(out) as folder:
        for pair in pairs:
            # No links: what leaves the store may be edited, the store may not.
            for path in pair_paths(Path(), pair.sample_id):
                (folder / path).parent.mkdir(exist_ok=True)
                shutil.copyfile(run_dir / path, folder / path)
        columns = _write_rows(folder / METADATA, pairs)
        content = croissant(
            pairs,
            name=name,
            description=description,
            cite_as=rights.text,
            license_url=rights.license_url,
            date=_day(manifest),
            version=VERSION,
            metadata_sha256=file_sha256(folder / METADATA),
        )
        write_json(folder / "croissant.json", content)
        card = _card_template().render(
            name=name,
            description=description,
            rights=rights,
            size_category=next(word for top, word in _SIZES if len(pairs) < top),
            sizes=[f"{width} x {height} px (width x height)" for height, width in sizes],
            columns=", ".join(f"`{column}`" for column in columns),
            provenance=_provenance(manifest, lineage=lineage, n=len(pairs)),
            what_is_synthetic=_SYNTHETIC.get(stage, _DRAWN),
        )
        write_atomic(folder / "README.md", card)


def _card_template() -> "jinja2.Template":
    import jinja2

    # Markdown, not a page: nothing is escaped.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("dataset_card.md.j2")


def _pairs(run_dir: Path, *, stage: str) -> list[SyntheticPair]:
    if stage not in _MADE_BY:
        raise InputError(
            f"{run_dir}: a run of stage {stage}, no synthetic set; give one of stage "
            f"{', '.join(_MADE_BY)}, such as runs/store/gate/ID"
        )
    if not (run_dir / "DONE.json").is_file():
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


def _lineage(run_dir: Path, manifest: dict[str, Any]) -> _Lineage:
    """Follow a set back to the labelled images that it was made from.

    Raises:
        InputError: A run on the way is not in the store.
    """
    store, manifests, gate_dir = run_dir.resolve().parents[1], {}, None
    todo = [(run_dir, manifest)]
    while todo:
        folder, found = todo.pop()
        manifests[found["stage"]] = found
        if found["stage"] == "gate":
            gate_dir = folder
        for role in _LINEAGE:
            key = found.get("upstream", {}).get(role)
            if key is not None and key.split("/")[0] not in manifests:
                if not (store / key / "manifest.json").is_file():
                    raise InputError(
                        f"{store / key}: missing, and says what {run_dir} was made from; export "
                        "from the store that made it"
                    )
                todo.append((store / key, read_manifest(store / key)))
    images = [m["content"]["images"] for m in manifests.values() if "images" in m["content"]]
    done = gate_dir / "DONE.json" if gate_dir is not None else None
    return _Lineage(
        manifests=manifests,
        labels=tuple(sorted({str(each[0]) for each in images[0]})) if images else (),
        gate_result=json.loads(done.read_text()) if done is not None and done.is_file() else {},
    )


def _write_rows(path: Path, pairs: Sequence[SyntheticPair]) -> list[str]:
    """Write metadata.jsonl without the columns that no pair fills; their names."""
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
    return columns


def _day(manifest: Mapping[str, Any]) -> str:
    return datetime.fromtimestamp(manifest.get("started", 0.0), tz=UTC).date().isoformat()


def _provenance(manifest: Mapping[str, Any], *, lineage: _Lineage, n: int) -> dict[str, Any]:
    """What the card's table says, by row."""
    version = manifest.get("versions", {}).get("sonosweep")
    rows = {
        "pairs": n,
        "run": f"{manifest['stage']}/{manifest.get('id')}",
        "sonosweep": f"{version}, commit {manifest.get('git_sha')}",
        "made on": _day(manifest),
    }
    if lineage.labels:
        rows["labelled images behind it"] = len(lineage.labels)
    generator = lineage.manifests.get("generator")
    if generator is not None:
        rows |= {"generator": f"generator/{generator.get('id')}", **_generator_rows(generator)}
    seeds = [
        f"{stage} {found['content']['seed']}"
        for stage, found in sorted(lineage.manifests.items())
        if "seed" in found["content"]
    ]
    if seeds:
        rows["seeds"] = ", ".join(seeds)
    gate = lineage.gate_result
    if "accepted" in gate:
        rows["gate"] = f"accepted {gate['accepted']} of {gate['accepted'] + gate['rejected']}"
    return rows


def _generator_rows(manifest: Mapping[str, Any]) -> dict[str, str]:
    settings = manifest["content"].get("stable_diffusion")
    if settings is None:
        return {"base model": "none: trained from random weights on these images alone"}
    base = str(manifest.get("config", {}).get("stable_diffusion", {}).get("base_model"))
    # A name on the hub says where to get it; of a path on this machine the end is enough.
    is_hub = base.count("/") == 1 and not base.startswith(("/", ".", "~"))
    where = (
        f"{base if is_hub else Path(base).name}, content id {manifest['content'].get('base_id')}"
    )
    return {
        "base model": f"{where}; its own licence has terms for what is drawn with it",
        "route": f"{settings.get('route')}, LoRA of rank {settings.get('lora_rank')}",
    }
