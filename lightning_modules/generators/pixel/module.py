"""Train a mask-guided generator of ultrasound images, and draw from it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lightning_modules.averaging import averaged
from lightning_modules.errors import WeightsError
from lightning_modules.generators.pixel.config import GeneratorConfig, SamplerConfig
from lightning_modules.generators.pixel.network import MaskGuidedUNet, mask_condition
from lightning_modules.generators.pixel.sampling import Progress, draw_samples
from lightning_modules.loss_watch import LossWatch
from lightning_modules.noise import (
    alphas_sigmas,
    low_discrepancy_timesteps,
    min_snr_weights,
    velocity,
)
from lightning_modules.optimizers import clip_gradients, with_schedule
from lightning_modules.pair_jitter import jitter_pairs
from lightning_modules.randomness import keyed_rand, keyed_randn

WEIGHTS_NAME = "generator.safetensors"
CONFIG_NAME = "generator.json"


def to_model_range(image: torch.Tensor, *, config: GeneratorConfig) -> torch.Tensor:
    """Map intensities in [0, 1] to the network's range, any shape.

    The square root (gamma 0.5) spreads dark ultrasound out. Mean 0 and spread 1 matter as much:
    v is then uncorrelated with the noisy image at every timestep, so the network need not learn
    to copy its input (the preconditioning of Karras et al. 2206.00364, table 1, at sigma_data 1).
    """
    spread_out = image.clamp(0, 1) ** config.intensity_gamma
    return (spread_out - config.intensity_mean) / config.intensity_std


def from_model_range(sample: torch.Tensor, *, config: GeneratorConfig) -> torch.Tensor:
    """Invert `to_model_range`, clipping to [0, 1]."""
    spread_out = sample * config.intensity_std + config.intensity_mean
    return spread_out.clamp(0, 1) ** (1 / config.intensity_gamma)


class DiffusionModule(L.LightningModule):
    """A generator with v-prediction, a cosine schedule, min-SNR weights and averaged weights.

    Batches carry `image` float32 (B, 1, H, W) in [0, 1] at the generator's size, `mask` float32
    (B, 1, H, W) {0, 1} and `draw` int64 (B,), the item's unique position in the training stream.
    All randomness of an item comes from (seed, draw).

    Args:
        config: The generator's settings, or a plain dict of them as checkpoints hold it.
        seed: Keys the initial weights and every item's noise.
    """

    def __init__(self, config: GeneratorConfig | dict[str, Any], *, seed: int = 0):
        super().__init__()
        if isinstance(config, dict):
            config = GeneratorConfig(**config)
        self.config = config
        self.seed = seed
        # Plain types: a dataclass here makes Lightning refuse to resume from its checkpoints.
        self.save_hyperparameters({"config": asdict(config), "seed": seed})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = MaskGuidedUNet(config)
        self.ema = EMAModel(self.network.parameters(), decay=config.ema_decay, foreach=True)

    @classmethod
    def start(cls, config: GeneratorConfig, *, seed: int) -> "DiffusionModule":
        """The module as training begins; see `generators.table`."""
        return cls(config, seed=seed)

    @classmethod
    def load_generator(
        cls,
        path: Path,
        config: GeneratorConfig,  # noqa: ARG003 - the folder holds its own
    ) -> "DiffusionModule":
        """See the function `load_generator`."""
        return load_generator(path)

    def forward(
        self, noisy_image: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        """Predict v (B, 1, H, W) with the weights in training; see `MaskGuidedUNet`."""
        return self.network(noisy_image, timesteps=timesteps, condition=condition)

    def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the batch's mean loss."""
        config, draws = self.config, batch["draw"]
        image, mask = jitter_pairs(
            batch["image"],
            batch["mask"],
            seed=self.seed,
            draws=draws,
            flip_probability=config.flip_probability,
            max_rotation_deg=config.max_rotation_deg,
            max_scale=config.max_scale,
            max_shift=config.max_shift,
        )
        image = to_model_range(image, config=config)
        key = {"seed": self.seed, "draws": draws, "device": image.device}
        noise = keyed_randn(image.shape[1:], stream="noise", **key)
        start = keyed_rand((), seed=self.seed, draws=[0], stream="timesteps", device=draws.device)
        timesteps = low_discrepancy_timesteps(start[0], draws).to(image.device)
        dropped = keyed_rand((), stream="mask_dropout", **key) < config.mask_dropout
        alphas_cumprod = self.network.alphas_cumprod
        alpha, sigma = alphas_sigmas(alphas_cumprod, timesteps)
        predicted = self(
            alpha * image + sigma * noise, timesteps, mask_condition(mask, dropped=dropped)
        )
        target = velocity(image, noise=noise, alpha=alpha, sigma=sigma)
        errors = (predicted.float() - target).square().mean(dim=(1, 2, 3))
        weights = min_snr_weights(alphas_cumprod, timesteps, gamma=config.min_snr_gamma)
        return (weights * errors).mean()

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW; the learning rate rises linearly, then falls as a cosine to zero at `steps`."""
        config = self.config
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        return with_schedule(optimizer, warmup_steps=config.warmup_steps, steps=config.steps)

    def configure_callbacks(self) -> list[L.Callback]:
        """Refuse losses and weights that are not finite."""
        return [LossWatch(setting="generator.learning_rate")]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients."""
        clip_gradients(optimizer, max_norm=self.config.gradient_clip_norm)

    def on_train_start(self) -> None:
        """Bring the averaged weights to the device; they are no part of the module."""
        self.ema.to(self.device)

    def optimizer_step(self, *args: Any) -> None:
        """Average the weights once per optimiser step, not once per accumulated batch."""
        super().optimizer_step(*args)
        self.ema.step(self.network.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the averaged weights and their step."""
        checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the averaged weights and their step."""
        self.ema.load_state_dict(checkpoint["ema"])

    def draw_on_masks(
        self,
        masks: torch.Tensor,
        *,
        seeds: Sequence[int],
        prompts: Sequence[str] = (),  # noqa: ARG002 - it reads none
        sampler: SamplerConfig,
        progress: Progress | None = None,
    ) -> torch.Tensor:
        """Draw one image for each mask with the averaged weights.

        Args:
            masks: (B, 1, H, W) {0, 1} at the generator's size, on the module's device.
            seeds: B integers; an image depends on its mask and seed, not on its batch.
            prompts: Not read.
            sampler: The solver's settings.
            progress: Called with (network passes done, all of them) after each.

        Returns:
            (B, 1, H, W) float32 in [0, 1]; empty for no masks.

        Raises:
            ValueError: Masks of another size, or seeds of another number.
        """
        if masks.ndim != 4 or tuple(masks.shape[1:]) != (1, *self.config.size_hw):
            expected = (len(masks), 1, *self.config.size_hw)
            raise ValueError(f"masks have shape {tuple(masks.shape)}, not {expected}")
        training = self.network.training
        self.network.eval()
        try:
            with averaged(self.network.parameters(), self.ema):
                samples = draw_samples(
                    self.network,
                    masks,
                    seeds=seeds,
                    config=self.config,
                    sampler=sampler,
                    progress=progress,
                )
        finally:
            self.network.train(training)
        return from_model_range(samples, config=self.config)

    def save_generator(self, path: str | Path) -> None:
        """Write the averaged weights and the config into a folder, which is made if need be."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        with averaged(self.network.parameters(), self.ema):
            state = {
                name: tensor.contiguous() for name, tensor in self.network.state_dict().items()
            }
            save_file(state, folder / WEIGHTS_NAME)
        settings = {"config": asdict(self.config), "seed": self.seed}
        (folder / CONFIG_NAME).write_text(json.dumps(settings, indent=2) + "\n")


def load_generator(path: str | Path) -> DiffusionModule:
    """Load what `save_generator` wrote, in eval mode and on the CPU.

    Raises:
        WeightsError: A missing or damaged file, or weights that do not fit their config.
    """
    folder = Path(path)
    try:
        settings = json.loads((folder / CONFIG_NAME).read_text())
        module = DiffusionModule(settings["config"], seed=settings["seed"])
        module.network.load_state_dict(load_file(folder / WEIGHTS_NAME), strict=True)
    except FileNotFoundError as error:
        raise WeightsError(
            f"{folder}: no generator here ({CONFIG_NAME}, {WEIGHTS_NAME})"
        ) from error
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{folder}: damaged generator: {reason}") from error
    module.ema = EMAModel(module.network.parameters(), decay=module.config.ema_decay, foreach=True)
    return module.eval()
