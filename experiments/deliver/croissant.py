"""A synthetic set described in Croissant 1.0, as JSON-LD written out plainly. Torch-free.

Source: https://docs.mlcommons.org/croissant/docs/croissant-spec.html; the tests read the result
with mlcroissant.
"""

from collections.abc import Sequence
from typing import Any

from datamodules.synthetic import SyntheticPair

_TERMS = (
    "citeAs column equivalentProperty extract field fileProperty fileObject fileSet format "
    "includes isLiveDataset jsonPath key md5 parentField path recordSet references regex "
    "repeated replace samplingRate separator source subField transform"
)
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _TERMS.split()},
}
METADATA = "metadata.jsonl"
_FOLDERS = {"image": "Synthetic ultrasound images.", "mask": "Filled heads: 0 and 255."}
_ELLIPSE = {
    "center_x_px": "Centre of the head outline, px from the left.",
    "center_y_px": "Centre of the head outline, px from the top.",
    "semi_major_px": "Longer semi-axis of the head outline, px.",
    "semi_minor_px": "Shorter semi-axis of the head outline, px.",
    "theta_rad": "Angle of the longer axis, from +x towards +y (down), radians.",
}
_OPTIONAL = (
    ("seed", "sc:Integer", "Seed of the pair's own noise and outline."),
    ("generator_id", "sc:Text", "Id of the generator's run."),
    ("prompt", "sc:Text", "Text that the generator was given."),
)


def croissant(
    pairs: Sequence[SyntheticPair],
    *,
    name: str,
    description: str,
    cite_as: str,
    license_url: str | None,
    date: str,
    version: str,
    metadata_sha256: str,
) -> dict[str, Any]:
    """Describe an exported set.

    A reader that joins two sources a record set, as mlcroissant does, gets the images from record
    set `pairs` and the masks from `masks`; `sample_id` is the key of both.

    Args:
        pairs: What metadata.jsonl holds; a column is described where every pair fills it.
        name: Of the set.
        description: A sentence or two.
        cite_as: Attribution.
        license_url: Page of the licence; None where its owner is to state it.
        date: ISO 8601 day.
        version: Of the set.
        metadata_sha256: Of the written metadata.jsonl.

    Returns:
        JSON-LD for croissant.json.
    """
    described = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": description,
        "citeAs": cite_as,
        "datePublished": date,
        "version": version,
        "distribution": [
            _node("cr:FileObject", METADATA, "A line of JSON a pair.")
            | {"contentUrl": METADATA, "encodingFormat": "application/jsonlines"}
            | {"sha256": metadata_sha256},
            *(
                _node("cr:FileSet", f"{folder}-files", what)
                | {"encodingFormat": "image/png", "includes": f"{folder}/*.png"}
                for folder, what in _FOLDERS.items()
            ),
        ],
        "recordSet": [
            _record_set("pairs", column="file_name", folder="image", more=_known_fields(pairs)),
            _record_set("masks", column="mask_file_name", folder="mask", more=[]),
        ],
    }
    return described if license_url is None else {**described, "license": license_url}


def _node(kind: str, identifier: str, what: str) -> dict[str, Any]:
    name = identifier.rpartition("/")[2]
    return {"@type": kind, "@id": identifier, "name": name, "description": what}


def _record_set(identifier: str, *, column: str, folder: str, more: list[Any]) -> dict[str, Any]:
    files = {"fileSet": {"@id": f"{folder}-files"}}
    joined = _column(f"{identifier}/{column}", f"File in {folder}/.", column=column)
    joined["source"]["transform"] = {"regex": f"^{folder}/(.+)$"}
    joined["references"] = files | {"extract": {"fileProperty": "filename"}}
    picture = _node("cr:Field", f"{identifier}/{folder}", f"The {folder}.")
    picture["dataType"] = "sc:ImageObject"
    picture["source"] = files | {"extract": {"fileProperty": "content"}}
    key = _column(f"{identifier}/sample_id", "Name of the pair.", column="sample_id")
    return _node("cr:RecordSet", identifier, f"Pairs with their {folder}.") | {
        "key": {"@id": key["@id"]},
        "field": [key, joined, picture, *more],
    }


def _column(identifier: str, what: str, *, column: str, kind: str = "sc:Text") -> dict[str, Any]:
    source = {"fileObject": {"@id": METADATA}, "extract": {"column": column}}
    return _node("cr:Field", identifier, what) | {"dataType": kind, "source": source}


def _known_fields(pairs: Sequence[SyntheticPair]) -> list[dict[str, Any]]:
    fields = [
        _column(f"pairs/{name}", what, column=name, kind=kind)
        for name, kind, what in _OPTIONAL
        if all(getattr(pair, name) is not None for pair in pairs)
    ]
    if all(pair.ellipse is not None for pair in pairs):
        for name, what in _ELLIPSE.items():
            field = _column(f"pairs/{name}", what, column="ellipse", kind="sc:Float")
            field["source"]["transform"] = {"jsonPath": name}
            fields.append(field)
    return fields
