"""A synthetic set of the store as an image folder for others: pictures, card and Croissant.

The layout stays the one of `synthesis.folder`, so an exported set is also an input here.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datamodules.attribution import CC_BY_URL, HC18_LICENCE
from datamodules.errors import InputError
from datamodules.storage import commit_folder, file_sha256, write_atomic, write_json
from datamodules.synthetic import SyntheticPair, pair_paths, read_metadata
from experiments.config.paths import TEMPLATES
from experiments.deliver.croissant import METADATA, croissant
from experiments.deliver.sidecar import OTHER_DATA, PHANTOM_DATA, data_line
from experiments.store.runs import read_manifest

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


@dataclass(frozen=True, kw_only=True)
class _Lineage:
    """Manifests of the runs behind a set, by stage, and what a gate counted."""

    manifests: dict[str, dict[str, Any]]
    labels: tuple[str, ...]
    """Ids of the labelled images that the set was made from."""
    gate_result: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Rights:
    """Whose images are behind a set."""

    text: str
    license_id: str
    """As the Hugging Face hub spells it."""
    license_url: str | None


def export_dataset(run_dir: Path, out: Path) -> None:
    """Write a synthetic set as image/, mask/, metadata.jsonl, README.md and croissant.json.

    Args:
        run_dir: Finished run of a stage that makes pairs, in its store.
        out: Folder to write; there whole or not at all.

    Raises:
        InputError: `out` exists, the run is no finished synthetic set, holds no pair or lacks a
            picture, or the runs that it was made from are not in the same store.
    """
    if out.exists():
        raise InputError(f"{out}: exists; choose another folder, or remove it")
    manifest = read_manifest(run_dir)
    pairs = _pairs(run_dir, stage=manifest["stage"])
    sizes = _sizes(run_dir, pairs)
    lineage = _lineage(run_dir, manifest)
    rights = _rights(manifest, labels=lineage.labels)
    name = f"sonosweep-{manifest['stage']}-{str(manifest.get('id', run_dir.name))[:8]}"
    description = (
        f"{len(pairs)} synthetic pairs of fetal-head ultrasound image and mask: "
        f"{_MADE_BY[manifest['stage']]}. Written by sonosweep."
    )
    with commit_folder(out) as folder:
        for pair in pairs:
            _copy_pair(run_dir, folder, sample_id=pair.sample_id)
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
        card = _card(
            name=name,
            description=description,
            front_matter=_front_matter(name, rights=rights, n=len(pairs)),
            size=_size_words(sizes),
            columns=", ".join(f"`{column}`" for column in columns),
            provenance=_provenance(manifest, lineage=lineage, n=len(pairs)),
            rights=rights.text,
            what_is_synthetic=_SYNTHETIC.get(manifest["stage"], _DRAWN),
        )
        write_atomic(folder / "README.md", card)


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


def _sizes(run_dir: Path, pairs: Sequence[SyntheticPair]) -> set[tuple[int, int]]:
    """(height, width) of the images, all pictures being there."""
    sizes = set()
    for pair in pairs:
        image, mask = (_png_size(path) for path in pair_paths(run_dir, pair.sample_id))
        if image != mask:
            raise InputError(
                f"{run_dir}: image and mask of {pair.sample_id} differ in size; make the run again"
            )
        sizes.add(image)
    return sizes


def _png_size(path: Path) -> tuple[int, int]:
    """Height and width from a PNG's header, which is 24 bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); make the run again"
        ) from error
    if len(head) < 24 or not head.startswith(b"\x89PNG\r\n\x1a\n"):
        raise InputError(f"{path}: no PNG; make the run again")
    return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")


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


def _rights(manifest: Mapping[str, Any], *, labels: Sequence[str]) -> _Rights:
    if manifest["stage"] == "import_pairs":
        return _Rights(
            text="Imported: the licence is to be stated by the owner of the imported folder.",
            license_id="unknown",
            license_url=None,
        )
    found = data_line(
        {"config": manifest.get("config", {}), "content": {"images": [[k] for k in labels]}}
    )
    if found == HC18_LICENCE:
        return _Rights(
            text=(
                f"Made from labelled images of HC18 and shared under its licence, CC BY 4.0 "
                f"({CC_BY_URL}), with changes: the pictures here are generated. {HC18_LICENCE}"
            ),
            license_id="cc-by-4.0",
            license_url=CC_BY_URL,
        )
    if found == PHANTOM_DATA:
        return _Rights(
            text="Made from procedural phantoms, which are free of licences and of patients.",
            license_id="unknown",
            license_url=None,
        )
    assert found == OTHER_DATA
    return _Rights(
        text="Made from images of another source than HC18, whose licence is its owner's to state.",
        license_id="unknown",
        license_url=None,
    )


def _copy_pair(source: Path, target: Path, *, sample_id: str) -> None:
    # No links: what leaves the store may be edited, the store may not.
    for old, new in zip(pair_paths(source, sample_id), pair_paths(target, sample_id), strict=True):
        new.parent.mkdir(exist_ok=True)
        shutil.copyfile(old, new)


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


def _front_matter(name: str, *, rights: _Rights, n: int) -> str:
    import yaml

    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))
    content = {
        "license": rights.license_id,
        "pretty_name": name,
        "task_categories": ["image-segmentation"],
        "tags": ["medical", "ultrasound", "fetal-head", "synthetic"],
        "size_categories": [next((word for top, word in bounds if n < top), "100K<n<1M")],
    }
    return yaml.safe_dump(content, sort_keys=False)


def _size_words(sizes: set[tuple[int, int]]) -> str:
    if len(sizes) == 1:
        height, width = next(iter(sizes))
        return f"{width} x {height} px (width x height)"
    return f"of {len(sizes)} sizes"


def _provenance(manifest: Mapping[str, Any], *, lineage: _Lineage, n: int) -> list[tuple[str, str]]:
    """What the card's table says, row by row."""
    rows = [
        ("pairs", str(n)),
        ("run", f"{manifest['stage']}/{manifest.get('id')}"),
        (
            "sonosweep",
            f"{manifest.get('versions', {}).get('sonosweep')}, commit {manifest.get('git_sha')}",
        ),
        ("made on", _day(manifest)),
    ]
    if lineage.labels:
        rows.append(("labelled images behind it", str(len(lineage.labels))))
    generator = lineage.manifests.get("generator")
    if generator is not None:
        rows.append(("generator", f"generator/{generator.get('id')}"))
        rows += _generator_rows(generator)
    seeded = {
        stage: found["content"]["seed"]
        for stage, found in sorted(lineage.manifests.items())
        if "seed" in found["content"]
    }
    if seeded:
        rows.append(("seeds", ", ".join(f"{stage} {seed}" for stage, seed in seeded.items())))
    gate = lineage.gate_result
    if "accepted" in gate:
        rows.append(
            ("gate", f"accepted {gate['accepted']} of {gate['accepted'] + gate['rejected']}")
        )
    return rows


def _generator_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    content = manifest["content"]
    settings = content.get("stable_diffusion")
    if settings is None:
        return [("base model", "none: trained from random weights on these images alone")]
    base = str(manifest.get("config", {}).get("stable_diffusion", {}).get("base_model"))
    # A name on the hub says where to get it; of a path on this machine the end is enough.
    is_hub = base.count("/") == 1 and not base.startswith(("/", ".", "~"))
    return [
        (
            "base model",
            f"{base if is_hub else Path(base).name}, content id {content.get('base_id')}; its own "
            "licence has terms for what is drawn with it",
        ),
        ("route", f"{settings.get('route')}, LoRA of rank {settings.get('lora_rank')}"),
    ]


def _card(
    *,
    name: str,
    description: str,
    front_matter: str,
    size: str,
    columns: str,
    provenance: Sequence[tuple[str, str]],
    rights: str,
    what_is_synthetic: str,
) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # Markdown, not a page.
        autoescape=False,
    )
    return environment.get_template("dataset_card.md.j2").render(
        name=name,
        description=description,
        front_matter=front_matter,
        size=size,
        columns=columns,
        provenance=provenance,
        rights=rights,
        what_is_synthetic=what_is_synthetic,
    )
