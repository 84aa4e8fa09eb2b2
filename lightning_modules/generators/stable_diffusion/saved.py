"""`generator.json` of a fitted generator: its settings, and the base model that it belongs to."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lightning_modules.errors import WeightsError
from lightning_modules.generators.stable_diffusion.config import StableDiffusionConfig
from lightning_modules.generators.stable_diffusion.weights import (
    base_id,
    read_json,
    resolve_base,
    shorten,
)

CONFIG_NAME = "generator.json"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What the file holds."""

    config: StableDiffusionConfig
    seed: int
    base_id: str
    """Of the base model that it was fitted on, see `base_id`."""
    prompts: tuple[str, ...]
    """Those that it was taught."""


def write_saved(folder: Path, saved: Saved) -> None:
    """Write the file into a folder."""
    (folder / CONFIG_NAME).write_text(json.dumps(asdict(saved), indent=2) + "\n")


def read_saved(folder: Path) -> Saved:
    """Read the file of a folder; WeightsError where it is missing or damaged."""
    if not (folder / CONFIG_NAME).is_file():
        raise WeightsError(f"{folder}: no generator here ({CONFIG_NAME} is missing)")
    settings = read_json(folder / CONFIG_NAME)
    try:
        return Saved(
            config=StableDiffusionConfig(**settings["config"]),
            seed=settings["seed"],
            base_id=settings["base_id"],
            prompts=tuple(settings["prompts"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{folder / CONFIG_NAME}: damaged ({shorten(error)})") from error


def base_of(
    saved: Saved, *, folder: Path, base_model: str | None, revision: str | None
) -> tuple[str, str | None]:
    """Name or path and revision of the base model to load, by default of where it lay then.

    Raises:
        WeightsError: It is missing, or another one than the generator of `folder` was fitted on.
    """
    if base_model is None:
        base_model, revision = resolve_base(saved.config.base_model, revision=saved.config.revision)
    found = base_id(base_model, revision=revision)
    if found != saved.base_id:
        raise WeightsError(
            f"{folder}: fitted on another base model than {base_model} ({saved.base_id[:60]}, not "
            f"{found[:60]}); give the one that it was fitted on ({saved.config.base_model})"
        )
    return base_model, revision
