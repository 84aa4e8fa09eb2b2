"""Latents, masks and prompts of the training images, encoded once."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lightning_modules.errors import WeightsError
from lightning_modules.generators.stable_diffusion.base import Base, encode_prompts
from lightning_modules.generators.stable_diffusion.config import Route, StableDiffusionConfig
from lightning_modules.generators.stable_diffusion.sampling import mask_channels
from lightning_modules.generators.stable_diffusion.weights import shorten
from lightning_modules.randomness import keyed_rand, keyed_randn

TENSORS = ("mean", "std", "masks", "prompt_rows", "embeddings")


@dataclass
class LatentBank:
    """What training reads of N images, on the CPU."""

    mean: torch.Tensor
    """(N, 2, 4, h, w) float32: means of the VAE's posterior, of the image and its mirror image."""
    std: torch.Tensor
    """(N, 2, 4, h, w) float32: its standard deviations."""
    masks: torch.Tensor
    """(N, 1, 8 h, 8 w) uint8 {0, 1}."""
    prompt_rows: torch.Tensor
    """(N,) int64: each image's row of `embeddings`."""
    embeddings: torch.Tensor
    """(P, L, D) float32; row 0 is the empty prompt."""
    prompts: tuple[str, ...]
    """P texts; the first is empty."""
    rows: Mapping[int, int] = field(default_factory=dict)
    """From a batch's `index` to the row of its image here."""

    def rows_of(self, index: torch.Tensor) -> torch.Tensor:
        """Rows (B,) int64 of a batch's `index` (B,).

        Raises:
            ValueError: An image that is not in the bank.
        """
        try:
            return torch.tensor([self.rows[i] for i in index.tolist()], dtype=torch.int64)
        except KeyError as error:
            raise ValueError(f"the image of index {error} has no latents in the bank") from error

    def save(self, path: Path) -> None:
        """Write all but `rows`; the file appears whole or not at all."""
        partial = path.with_name(path.name + ".partial")
        tensors = {name: getattr(self, name).contiguous() for name in TENSORS}
        save_file(tensors, partial, metadata={"prompts": json.dumps(self.prompts)})
        partial.replace(path)

    @classmethod
    def load(cls, path: Path, *, rows: Mapping[int, int]) -> "LatentBank":
        """Read what `save` wrote.

        Raises:
            WeightsError: Damaged, or of another number of images than `rows` names.
        """
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in TENSORS}
                prompts = tuple(json.loads((file.metadata() or {})["prompts"]))
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise WeightsError(
                f"{path}: damaged latents ({shorten(error)}); remove the file to encode again"
            ) from error
        bank = cls(**tensors, prompts=prompts, rows=dict(rows))
        if sorted(rows.values()) != list(range(len(bank.mean))):
            raise WeightsError(
                f"{path}: latents of {len(bank.mean)} images, not of {len(rows)}; remove the file "
                "to encode again"
            )
        return bank


@torch.no_grad()
def encode_bank(
    base: Base,
    *,
    images: torch.Tensor,
    masks: torch.Tensor,
    outlines: torch.Tensor | None,
    prompts: Sequence[str],
    rows: Mapping[int, int],
    route: Route,
    batch_size: int,
    device: str | torch.device = "cpu",
) -> LatentBank:
    """Encode images, their mirror images and prompts.

    Args:
        base: Its VAE works on `device` meanwhile and comes back to the CPU.
        images: (N, 1, H, W) in [0, 1]; H and W multiples of 8; N may be 0.
        masks: (N, 1, H, W) {0, 1}.
        outlines: (N, 1, H, W) in [0, 1] for `sd_in_channel`, whose RGB is [image, image, outline];
            None for `sd_mask`, whose RGB is the image three times.
        prompts: N texts.
        rows: From a batch's `index` to the image's place in `images`.
        route: The generator's.
        batch_size: Images encoded at once, besides their mirror images.
        device: Where to encode.

    Raises:
        ValueError: Inputs that differ in number or size, or outlines that do not fit the route.
        WeightsError: A prompt that the tokenizer would cut.

    Source:
        The VAE's scaling of inputs to [-1, 1] as in diffusers' VaeImageProcessor.
    """
    if (outlines is not None) != (route == "sd_in_channel"):
        raise ValueError(f"route {route} takes {'' if outlines is None else 'no '}outlines")
    outlines = images if outlines is None else outlines
    if not images.shape == masks.shape == outlines.shape or len(prompts) != len(images):
        raise ValueError(
            f"images {tuple(images.shape)}, masks {tuple(masks.shape)}, outlines "
            f"{tuple(outlines.shape)} and {len(prompts)} prompts do not belong together"
        )
    distinct = ("", *sorted(set(prompts) - {""}))
    embeddings = encode_prompts(base, distinct)
    height, width = images.shape[2] // 8, images.shape[3] // 8
    means, stds = [torch.empty(0, 2, 4, height, width)], [torch.empty(0, 2, 4, height, width)]
    base.vae.to(device)
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        pictures = 2 * torch.cat([images[part], images[part], outlines[part]], dim=1).float() - 1
        both = torch.cat([pictures, pictures.flip(-1)]).to(device)
        posterior = base.vae.encode(both).latent_dist
        for found, kept in ((posterior.mean, means), (posterior.std, stds)):
            kept.append(torch.stack(found.float().cpu().chunk(2), dim=1))
    base.vae.to("cpu")
    return LatentBank(
        mean=torch.cat(means),
        std=torch.cat(stds),
        masks=masks.to(torch.uint8).cpu(),
        prompt_rows=torch.tensor([distinct.index(p) for p in prompts], dtype=torch.int64),
        embeddings=embeddings,
        prompts=distinct,
        rows=dict(rows),
    )


def training_inputs(
    bank: LatentBank,
    *,
    index: torch.Tensor,
    draws: torch.Tensor,
    seed: int,
    config: StableDiffusionConfig,
    scaling_factor: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Resample, mirror and drop, each item by (seed, draw) alone.

    Args:
        bank: The images.
        index: (B,) int64 of the batch.
        draws: (B,) int64, the items' unique positions in the training stream.
        seed: The run's.
        config: Route and the shares of mirrored and dropped items.
        scaling_factor: The VAE's, from its latents to the UNet's.

    Returns:
        Latents (B, 4, h, w), prompt embeddings (B, L, D), and for `sd_mask` mask channels
        (B, 64, h, w), zero where the mask is dropped, else None; float32 on the CPU; B may be 0.
    """
    rows, key = bank.rows_of(index), {"seed": seed, "draws": draws}
    is_mirrored = keyed_rand((), stream="flip", **key) < config.flip_probability
    # One number for both, because guidance compares with neither prompt nor mask.
    dropping = keyed_rand((), stream="dropout", **key)
    side = is_mirrored.long()
    mean, std = bank.mean[rows, side], bank.std[rows, side]
    latents = mean + std * keyed_randn(mean.shape[1:], stream="latents", **key)
    prompt_rows = bank.prompt_rows[rows].masked_fill(dropping < config.caption_dropout, 0)
    embeddings = bank.embeddings[prompt_rows]
    if config.route == "sd_in_channel":
        return scaling_factor * latents, embeddings, None
    masks = bank.masks[rows]
    masks = torch.where(is_mirrored.view(-1, 1, 1, 1), masks.flip(-1), masks)
    is_kept = (dropping >= config.mask_dropout).view(-1, 1, 1, 1)
    return scaling_factor * latents, embeddings, mask_channels(masks) * is_kept
