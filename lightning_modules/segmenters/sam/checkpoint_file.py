"""Read SAM checkpoints as they come: bare or wrapped, with any of the usual prefixes."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lightning_modules.errors import WeightsError
from lightning_modules.segmenters.sam.config import Backbone
from lightning_modules.weights_table import WEIGHTS

WRAPPERS = ("model", "state_dict", "model_state", "model_state_dict", "sam", "weights")
PREFIXES = ("module.", "sam.", "model.", "sam_model.", "_orig_mod.")
EMBED_DIMS = {768: "vit_b (or medsam)", 1024: "vit_l", 1280: "vit_h"}


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint's tensors under segment_anything's own names, on the CPU.

    Args:
        path: A .pth, .pt or .ckpt file, read without running any code in it, or .safetensors.

    Raises:
        WeightsError: Not readable as weights; one line with the file's name.
    """
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            # Mapped: what of a file is not used is not read.
            loaded = torch.load(
                path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds more than weights, which is not run; save its state_dict() alone"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError, zipfile.BadZipFile) as e:
        reason = " ".join(str(e).split())[:120] or type(e).__name__
        raise WeightsError(f"{path}: not readable as weights ({reason}); get it again") from e
    return _bare(loaded, path=path)


def _bare(loaded: Any, *, path: Path) -> dict[str, torch.Tensor]:
    while isinstance(loaded, Mapping) and not _is_state(loaded):
        inner = next((loaded[k] for k in WRAPPERS if isinstance(loaded.get(k), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not (isinstance(loaded, Mapping) and _is_state(loaded)):
        raise WeightsError(f"{path}: holds no state dict; give a SAM checkpoint")
    state = dict(loaded)
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _is_state(found: Mapping) -> bool:
    return bool(found) and all(isinstance(v, torch.Tensor) for v in found.values())


def load_strictly(
    network: torch.nn.Module, state: Mapping[str, torch.Tensor], *, path: Path, backbone: Backbone
) -> None:
    """Give a network the weights of a state dict, which must fit to the last name and shape.

    Args:
        network: May lie on the meta device; its weights are float32 on the CPU afterwards.
        state: Of any floating type.
        path: Where it came from, for messages.
        backbone: What it should be, for messages.

    Raises:
        WeightsError: It does not; says which backbone the file is of, where that shows.
    """
    expected = network.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    shaped = [
        name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape
    ]
    if missing or unknown or shaped:
        example, remedy = (shaped + missing + unknown)[0], _remedy(state, backbone)
        raise WeightsError(
            f"{path}: not the weights of {backbone}: {len(missing)} missing, {len(unknown)} "
            f"unknown, {len(shaped)} of another shape, such as {example}; {remedy}"
        )
    as_float = {n: t.float() if t.is_floating_point() else t for n, t in state.items()}
    network.load_state_dict(as_float, strict=True, assign=True)


def _remedy(state: Mapping[str, torch.Tensor], backbone: Backbone) -> str:
    positions = state.get("image_encoder.pos_embed")
    if positions is not None and positions.ndim == 4:
        fits = EMBED_DIMS.get(positions.shape[-1])
        if fits is not None and backbone not in fits:
            return f"it looks like {fits}: set segmenter.backbone to it"
    if "image_encoder.patch_embed.seq.0.c.weight" in state:
        return "it looks like lite: set segmenter.backbone to it"
    wanted = WEIGHTS.get(backbone)
    return f"get {wanted.file}" if wanted else "give another file"
