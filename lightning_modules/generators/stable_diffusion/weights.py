"""Find a base model of Stable Diffusion and name it for the ids of runs.

Free of torch, so that the command line can say at once that a file is missing, damaged or of
another layout.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lightning_modules.errors import WeightsError
from lightning_modules.weights_table import DEFAULT_BASE, StartWeights, file_digest

NETWORKS = ("unet", "vae", "text_encoder")
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
THREE_WAYS = (
    "set stable_diffusion.base_model to a folder in diffusers' layout, to a single .safetensors "
    "file of Stable Diffusion 1.5 with a folder tokenizer/ beside it, or to a name on the hub "
    "such as stable-diffusion-v1-5/stable-diffusion-v1-5"
)
UNET_KEY = "model.diffusion_model.input_blocks.0.0.weight"
TEXT_KEY = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
VAE_KEY = "first_stage_model.encoder.conv_in.weight"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
DEFAULT_REVISION = "main"


@dataclass(frozen=True)
class BaseFiles:
    """Where a base model lies, checked as far as that goes without torch."""

    path: Path
    """Folder in diffusers' layout, or a .safetensors file."""
    tokenizer: Path
    """Folder of the tokenizer's files."""
    weights: tuple[Path, ...]
    """Files of weights: one of each of `NETWORKS`, or the single file."""
    others: tuple[Path, ...]
    """Configs and tokenizer files."""


def base_id(base_model: str | None, *, revision: str | None = None) -> str:
    """Name a base model by its content.

    Args:
        base_model: Folder, .safetensors file, or name on the hub; None is the default one.
        revision: Of a name on the hub; None is its main branch.

    Returns:
        SHA-256 over the names and contents of all files that `load_base` reads, which does not
        change where the folder moves; `name@revision` for the hub, which is not asked.

    Raises:
        WeightsError: A file is missing, damaged or of another layout.
    """
    base_model, revision = resolve_base(base_model, revision=revision)
    if is_hub_name(base_model):
        return f"{base_model}@{DEFAULT_REVISION if revision is None else revision}"
    found = find_base(base_model)
    digest = hashlib.sha256()
    for path in sorted((*found.weights, *found.others)):
        name = "weights" if path == found.path else f"{path.parent.name}/{path.name}"
        digest.update(f"{name}\0{file_digest(path, 'sha256')}\n".encode())
    return digest.hexdigest()


def resolve_base(base_model: str | None, *, revision: str | None = None) -> tuple[str, str | None]:
    """Name and revision of a base model; None is the default one at its commit."""
    if base_model is not None:
        return base_model, revision
    return DEFAULT_BASE.repo, DEFAULT_BASE.revision if revision is None else revision


def is_hub_name(base_model: str) -> bool:
    """Whether this is `owner/name` and no path that exists."""
    return (
        HUB_NAME.fullmatch(base_model) is not None
        and not Path(base_model).exists()
        and not base_model.endswith((".safetensors", ".ckpt", ".bin", ".pt", ".pth"))
    )


def base_start(base_model: str | None, *, revision: str | None = None) -> StartWeights:
    """Where a base model lies; of the hub's, in its cache."""
    name, revision = resolve_base(base_model, revision=revision)
    if not is_hub_name(name):
        return StartWeights(what=Path(name).name, find=lambda: find_base(name).path)
    return StartWeights(
        what=f"{name} (hub)",
        find=lambda: find_in_hub_cache(name, revision=revision),
        fetch=name if revision is None else f"{name}@{revision}",
    )


def find_in_hub_cache(name: str, *, revision: str | None = None) -> Path | None:
    """Folder of a hub's model in the hub's cache, without the network; None where its UNet, which
    is the largest of its files, is not there.
    """
    from huggingface_hub import try_to_load_from_cache

    for stem in ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16"):
        found = try_to_load_from_cache(name, f"unet/{stem}.safetensors", revision=revision)
        if isinstance(found, str):
            return Path(found).parent.parent
    return None


def find_base(base_model: str) -> BaseFiles:
    """Find a base model on this machine and check its files' layout and wholeness.

    Args:
        base_model: Folder in diffusers' layout, or a .safetensors file.

    Raises:
        WeightsError: A file is missing, damaged or of another layout.
    """
    path = Path(base_model).expanduser()
    if path.is_dir():
        return _find_in_folder(path)
    if not path.is_file():
        raise WeightsError(f"stable_diffusion.base_model={base_model}: not there; {THREE_WAYS}")
    if path.suffix != ".safetensors":
        raise WeightsError(
            f"{path}: not a .safetensors file, and pickles are not run; {THREE_WAYS}"
        )
    return _find_file(path)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Give the shape of each tensor in a .safetensors file, from its header.

    Raises:
        WeightsError: Not readable, cut short or not of this format.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path}: damaged, cut short or not safetensors ({shorten(error)}); get it again"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a config.

    Raises:
        WeightsError: Not readable, or no JSON object.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not readable ({shorten(error)}); get it again") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: holds no settings; get it again")
    return found


def shorten(error: Exception) -> str:
    """An exception's text on one line, or its class where it has none."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def _find_in_folder(folder: Path) -> BaseFiles:
    if (folder / "text_encoder_2").exists():
        raise WeightsError(
            f"{folder}: two text encoders, as SDXL has; use a model of Stable Diffusion 1.5's "
            f"layout: {THREE_WAYS}"
        )
    configs = [folder / name / "config.json" for name in NETWORKS]
    configs.append(folder / "scheduler" / "scheduler_config.json")
    for config in configs:
        if not config.is_file():
            raise WeightsError(
                f"{folder}: {config.parent.name}/{config.name} is missing, so this is no whole "
                f"base model; {THREE_WAYS}"
            )
    tokenizer = folder / "tokenizer"
    tokenizer_files = _tokenizer_files(tokenizer, wanted_by=folder)
    weights = tuple(_weights_file(folder / name) for name in NETWORKS)
    _check_configs(folder)
    for path in weights:
        read_shapes(path)
    return BaseFiles(folder, tokenizer, weights, (*configs, *tokenizer_files))


def _weights_file(folder: Path) -> Path:
    stem = "model" if folder.name == "text_encoder" else "diffusion_pytorch_model"
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / name).is_file():
            return folder / name
    pickled = " (its pickles are not run)" if any(folder.glob("*.bin")) else ""
    raise WeightsError(f"{folder}: {stem}.safetensors is missing{pickled}; {THREE_WAYS}")


def _tokenizer_files(folder: Path, *, wanted_by: Path) -> list[Path]:
    for names in TOKENIZER_FILES:
        if all((folder / name).is_file() for name in names):
            return sorted(path for path in folder.iterdir() if path.is_file())
    remedy = "put that folder of any Stable Diffusion 1.5 there, or use a whole folder"
    raise WeightsError(
        f"{wanted_by}: the tokenizer is missing ({folder}: vocab.json and merges.txt, or "
        f"tokenizer.json); {remedy}"
    )


def _check_configs(folder: Path) -> None:
    unet, vae = (read_json(folder / name / "config.json") for name in ("unet", "vae"))
    text = read_json(folder / "text_encoder" / "config.json")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    problem = None
    if unet.get("in_channels", 4) != 4 or unet.get("out_channels", 4) != 4:
        problem = f"its UNet takes {unet.get('in_channels', 4)} channels, not 4 (inpainting?)"
    elif unet.get("addition_embed_type") is not None:
        problem = "its UNet takes further conditions, as SDXL's does"
    elif unet.get("cross_attention_dim", 1280) != text.get("hidden_size", 512):
        problem = "its text encoder is of another width than its UNet reads"
    elif vae.get("latent_channels", 4) != 4 or len(vae.get("block_out_channels", ())) != 4:
        problem = "its VAE makes other latents than 4 channels of an eighth of the size"
    elif scheduler.get("num_train_timesteps", 1000) != 1000:
        problem = f"its schedule has {scheduler['num_train_timesteps']} steps, not 1000"
    elif scheduler.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction"):
        problem = f"it predicts {scheduler['prediction_type']}, not epsilon or v"
    if problem is not None:
        raise WeightsError(f"{folder}: not Stable Diffusion 1.5's layout: {problem}; {THREE_WAYS}")


def _find_file(path: Path) -> BaseFiles:
    shapes = read_shapes(path)
    problem = None
    if any(name.startswith("conditioner.embedders.") for name in shapes):
        problem = "it looks like SDXL, which has two text encoders"
    elif UNET_KEY not in shapes:
        problem = "no UNet is in it (LoRA or VAE alone?)"
    elif len(shapes[UNET_KEY]) != 4 or shapes[UNET_KEY][1] != 4:
        problem = f"its UNet's first weights are {shapes[UNET_KEY]}, not for 4 channels"
    elif TEXT_KEY not in shapes:
        problem = "CLIP's text encoder is not in it (Stable Diffusion 2 or a UNet alone?)"
    elif VAE_KEY not in shapes:
        problem = "the VAE is not in it"
    if problem is not None:
        raise WeightsError(f"{path}: not Stable Diffusion 1.5's layout: {problem}; {THREE_WAYS}")
    tokenizer = path.parent / "tokenizer"
    return BaseFiles(path, tokenizer, (path,), tuple(_tokenizer_files(tokenizer, wanted_by=path)))
