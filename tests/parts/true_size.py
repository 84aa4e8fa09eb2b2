"""Stable Diffusion 1.5 and SAM ViT-B in their true sizes and published layouts, weights random.

    python tests/parts/true_size.py FOLDER

writes `sd15/` (a folder of diffusers in fp16), `sd15.safetensors` (the original's key layout, with
`tokenizer/` beside it) and `sam_vit_b.pth` (Meta's layout), 4.3 GiB in all. The vocabulary of
CLIP's tokenizer is that of the package open-clip-torch where it is installed or on PYTHONPATH; else
one of its size is made up.
"""

import gzip
import importlib.util
import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from sd_parts import byte_symbols, single_file
from segment_anything import sam_model_registry
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from lightning_modules.generators.stable_diffusion.base import (
    SCHEDULER_SETTINGS,
    TEXT_SETTINGS,
    UNET_SETTINGS,
    VAE_SETTINGS,
)

MERGES = 49_152 - 256 - 2
"""Of CLIP's tokenizer: 512 single symbols, these, and two special words make 49,408."""
PARTS = {
    "unet": "diffusion_pytorch_model.fp16.safetensors",
    "vae": "diffusion_pytorch_model.fp16.safetensors",
    "text_encoder": "model.fp16.safetensors",
}


def random_state(network: nn.Module, *, seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights for a network on the meta device that keep activations finite through its depth."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if tensor.ndim == 1:
            is_scale = name.endswith("weight")
            state[name] = torch.full(tensor.shape, float(is_scale), dtype=dtype)
            continue
        # Half of what keeps the spread, or residual branches add up.
        std = 0.5 / math.sqrt(max(1, math.prod(tensor.shape[1:])))
        drawn = torch.randn(tensor.shape, generator=generator) * std
        state[name] = drawn.to(dtype)
    return state


def write_stable_diffusion(folder: Path) -> tuple[Path, Path]:
    """The folder of diffusers and the single file."""
    whole = folder / "sd15"
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET_SETTINGS)
        vae = AutoencoderKL(**VAE_SETTINGS)
        text = CLIPTextModel(CLIPTextConfig(**TEXT_SETTINGS))
    for seed, (name, network) in enumerate(
        {"unet": unet, "vae": vae, "text_encoder": text}.items()
    ):
        (whole / name).mkdir(parents=True, exist_ok=True)
        state = random_state(network, seed=seed, dtype=torch.float16)
        save_file(state, whole / name / PARTS[name], metadata={"format": "pt"})
    unet.save_config(whole / "unet")
    vae.save_config(whole / "vae")
    text.config.save_pretrained(whole / "text_encoder")
    PNDMScheduler.from_config(SCHEDULER_SETTINGS).save_pretrained(whole / "scheduler")
    write_tokenizer(whole / "tokenizer")
    classes = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **classes}
    (whole / "model_index.json").write_text(json.dumps(index))
    file = single_file(
        whole,
        folder / "sd15.safetensors",
        layers=UNET_SETTINGS["layers_per_block"],
        files=[f"{name}/{file}" for name, file in PARTS.items()],
    )
    shutil.copytree(whole / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    return whole, file


def write_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer with its own vocabulary, or a made-up one of the same size."""
    folder.mkdir(parents=True, exist_ok=True)
    merges, symbols = _merges(), byte_symbols()
    words = [*symbols, *(s + "</w>" for s in symbols), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    assert len(set(words)) == TEXT_SETTINGS["vocab_size"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        **dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _merges() -> list[tuple[str, str]]:
    spec = importlib.util.find_spec("open_clip")
    places = [] if spec is None else spec.submodule_search_locations
    for place in places or []:
        packed = Path(place) / "bpe_simple_vocab_16e6.txt.gz"
        if packed.is_file():
            lines = gzip.decompress(packed.read_bytes()).decode().split("\n")
            return [tuple(line.split()) for line in lines[1 : 1 + MERGES]]
    symbols = byte_symbols()
    ends = [*symbols, *(s + "</w>" for s in symbols)]
    pairs = ((a, b) for a in symbols for b in ends)
    return [next(pairs) for _ in range(MERGES)]


def write_sam(folder: Path) -> Path:
    """SAM ViT-B as Meta publishes it."""
    with torch.device("meta"):
        sam = sam_model_registry["vit_b"]()
    path = folder / "sam_vit_b.pth"
    torch.save(random_state(sam, seed=9, dtype=torch.float32), path)
    return path


def anonymous_gib() -> float:
    """Memory of this process that no file stands behind: mapped weights are not in it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next(line for line in lines if line.startswith("RssAnon"))
    return int(found.split()[1]) / 2**20


def write_all(folder: Path) -> Mapping[str, Path]:
    """Everything, where it is not there yet."""
    paths = {
        "folder": folder / "sd15",
        "file": folder / "sd15.safetensors",
        "sam": folder / "sam_vit_b.pth",
    }
    if not paths["sam"].is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_stable_diffusion(folder)
        write_sam(folder)
    return paths


def sizes(folder: Path) -> Iterator[str]:
    """Lines on the files."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size > 2**20:
            yield f"{path.relative_to(folder)}: {path.stat().st_size / 2**30:.2f} GiB"


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
    print("\n".join(sizes(Path(sys.argv[1]))))
