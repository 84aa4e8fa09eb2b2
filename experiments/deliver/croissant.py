"""A synthetic set described in Croissant 1.0, as JSON-LD written out plainly. Torch-free.

Source: https://docs.mlcommons.org/croissant/docs/croissant-spec.html; the tests read the result
with mlcroissant.
"""

from collections.abc import Sequence
from typing import Any

from datamodules.synthetic import SyntheticPair

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
METADATA = "metadata.jsonl"
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
    known = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": description,
        "citeAs": cite_as,
        "datePublished": date,
        "version": version,
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": METADATA,
                "name": METADATA,
                "description": "A line of JSON a pair.",
                "contentUrl": METADATA,
                "encodingFormat": "application/jsonlines",
                "sha256": metadata_sha256,
            },
            _pictures("image-files", glob="image/*.png", what="Synthetic ultrasound images."),
            _pictures("mask-files", glob="mask/*.png", what="Filled heads: 0 and 255."),
        ],
        "recordSet": [
            _record_set(
                "pairs", what="Pairs with their image.", column="file_name", folder="image"
            ),
            _record_set(
                "masks", what="Pairs with their mask.", column="mask_file_name", folder="mask"
            ),
        ],
    }
    known["recordSet"][0]["field"] += _known_fields(pairs)
    return known if license_url is None else {**known, "license": license_url}


def _pictures(identifier: str, *, glob: str, what: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": identifier,
        "name": identifier,
        "description": what,
        "encodingFormat": "image/png",
        "includes": glob,
    }


def _record_set(identifier: str, *, what: str, column: str, folder: str) -> dict[str, Any]:
    files = f"{folder}-files"
    joined = _column(f"{identifier}/{column}", column=column, what=f"File in {folder}/.")
    joined["source"]["transform"] = {"regex": f"^{folder}/(.+)$"}
    joined["references"] = {"fileSet": {"@id": files}, "extract": {"fileProperty": "filename"}}
    return {
        "@type": "cr:RecordSet",
        "@id": identifier,
        "name": identifier,
        "description": what,
        "key": {"@id": f"{identifier}/sample_id"},
        "field": [
            _column(f"{identifier}/sample_id", column="sample_id", what="Name of the pair."),
            joined,
            {
                "@type": "cr:Field",
                "@id": f"{identifier}/{folder}",
                "name": folder,
                "description": f"The {folder}.",
                "dataType": "sc:ImageObject",
                "source": {"fileSet": {"@id": files}, "extract": {"fileProperty": "content"}},
            },
        ],
    }


def _column(
    identifier: str, *, column: str, what: str, data_type: str = "sc:Text"
) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": identifier,
        "name": identifier.split("/")[1],
        "description": what,
        "dataType": data_type,
        "source": {"fileObject": {"@id": METADATA}, "extract": {"column": column}},
    }


def _known_fields(pairs: Sequence[SyntheticPair]) -> list[dict[str, Any]]:
    fields = []
    for name, data_type, what in _OPTIONAL:
        if all(getattr(pair, name) is not None for pair in pairs):
            fields.append(_column(f"pairs/{name}", column=name, what=what, data_type=data_type))
    if all(pair.ellipse is not None for pair in pairs):
        for name, what in _ELLIPSE.items():
            field = _column(f"pairs/{name}", column="ellipse", what=what, data_type="sc:Float")
            field["source"]["transform"] = {"jsonPath": name}
            fields.append(field)
    return fields
