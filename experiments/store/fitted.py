"""Where a run keeps what was fitted, and the settings of a fitted segmenter. Torch-free."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from experiments.config.extensions import import_extensions
from lightning_modules.segmenters.table import SEGMENTERS, row_of

WEIGHTS_NAME = "segmenter.safetensors"
"""A fitted segmenter's weights, in the directory of its run."""
GENERATOR = "generator"
"""A fitted generator's folder there."""
GENERATOR_IMAGES = "images.json"
"""In that folder, what it was fitted on: a row an image, see `stages.generator.images_behind`."""


def described(settings: Any) -> dict[str, Any]:
    """What a manifest says of a segmenter: its kind and all its settings."""
    row = row_of(settings)
    kind = next(name for name, other in SEGMENTERS.items() if other is row)
    return {"kind": kind, "settings": asdict(settings)}


def settings_of_run(run_dir: Path, manifest: Mapping[str, Any]) -> Any:
    """The settings that a run's segmenter was fitted with; InputError if they are of another
    version, or an extension of the recipe is not there.
    """
    # Its kind may be a row of theirs.
    import_extensions(manifest.get("config", {}).get("extensions", []), where=str(run_dir))
    try:
        found = manifest["segmenter"]
        row = SEGMENTERS[found["kind"]]
        return row.settings(**{**row.prediction_settings, **found["settings"]})
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{run_dir}: its settings are not of this version ({error}); fit the segmenter again"
        ) from error
