"""What an exported model's file does not say: input, prompt, data and versions, as JSON."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.attribution import HC18_LICENCE
from datamodules.samples import PHANTOM_MARKER
from datamodules.storage import file_sha256, write_json
from experiments.store.provenance import package_version
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX, SegmenterConfig

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

HC18_DATA = f"fitted on images that are named as HC18's are; where they are: {HC18_LICENCE}"
OTHER_DATA = "fitted on images of another source than HC18, whose licence is its owner's to state"
PHANTOM_DATA = "fitted on procedural phantoms, which are free of licences and of patients"
PLACEMENT = {
    "pad": (
        "the longest side is resized to image_side_px, the aspect ratio kept; zeros below and "
        "right, after the normalisation"
    ),
    "squash": (
        "the image is resized to image_side_px x image_side_px, the aspect ratio lost; do this "
        "yourself, and undo it on the mask: segment_anything and transformers pad"
    ),
}
NORMALISATION = {
    "imagenet": "(value - pixel_mean) / pixel_std for values in 0..255, as SAM's own",
    "min_max": (
        "each image is stretched so that its own minimum is 0 and its maximum 255; do this "
        "yourself: pixel_mean and pixel_std then only divide by 255"
    ),
}
_HC18_ID = re.compile(r"\d{3}_\d*HC")
_PACKAGES = ("sonosweep", "torch", "segment-anything", "diffusers", "peft", "transformers")


def write_sidecar(
    folder: Path, manifest: Mapping[str, Any], *, weights: Path, about: Mapping[str, Any]
) -> None:
    """Write sonosweep.json beside exported weights of a run: their origin, and how to use them."""
    origin = {
        "weights": {"file": weights.name, "sha256": file_sha256(weights)},
        "run": {key: manifest.get(key) for key in ("stage", "id", "sweep", "git_sha")},
        "data": data_line(manifest),
        "versions": {package: package_version(package) for package in _PACKAGES},
    }
    write_json(folder / "sonosweep.json", {**origin, **about})


def about_sam(config: SegmenterConfig, sam: "Sam") -> dict[str, Any]:
    """What the weights of a SAM cannot say of how to use them."""
    from lightning_modules.segmenters.sam.backbones import normalisation_of

    return {
        "backbone": config.backbone,
        "tuning": config.tuning,
        "input": {
            "geometry": config.geometry,
            "placement": PLACEMENT[config.geometry],
            "image_side_px": sam.image_encoder.img_size,
            "frame_side_px": FRAME_SIDE_PX[config.backbone],
            "channels": "grey, three times",
            "normalisation": NORMALISATION[normalisation_of(config.backbone)],
            "pixel_mean": sam.pixel_mean.flatten().tolist(),
            "pixel_std": sam.pixel_std.flatten().tolist(),
        },
        "prompt": {
            "kind": "one box an image; no points, no mask; multimask_output=False",
            "trained_under": list(config.train_prompts),
            "jitter_max_px": config.jitter_max_px,
            "whole_image": "the box of the whole image: 0, 0, width - 1, height - 1",
            "box": (
                "x0, y0, x1, y1, both corners inclusive, pixel centres being integers: x moves to "
                "(x + 0.5) * scale - 0.5 when the image is resized"
            ),
        },
        "output": "logits; above 0 is head",
    }


def data_line(manifest: Mapping[str, Any]) -> str:
    """Licence and attribution of the images that a run, or an exported model, was fitted on."""
    if "data" in manifest:
        return manifest["data"]
    root = manifest.get("config", {}).get("data", {}).get("root")
    if root is not None and (Path(root) / PHANTOM_MARKER).is_file():
        return PHANTOM_DATA
    ids = [str(each[0]) for each in manifest.get("content", {}).get("images", [])]
    return HC18_DATA if ids and all(map(_HC18_ID.fullmatch, ids)) else OTHER_DATA
