"""Fine-tune Stable Diffusion by LoRA, and draw from it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch.nn.modules.module import _IncompatibleKeys

from lightning_modules.averaging import averaged
from lightning_modules.errors import WeightsError
from lightning_modules.generators.stable_diffusion.base import Base, load_base
from lightning_modules.generators.stable_diffusion.config import (
    StableDiffusionConfig,
    StableDiffusionSamplerConfig,
)
from lightning_modules.generators.stable_diffusion.latents import (
    LatentBank,
    encode_bank,
    training_inputs,
)
from lightning_modules.generators.stable_diffusion.lora import (
    load_trained,
    prepare_unet,
    save_trained,
)
from lightning_modules.generators.stable_diffusion.sampling import Progress, draw_images
from lightning_modules.generators.stable_diffusion.saved import (
    Saved,
    base_of,
    read_saved,
    write_saved,
)
from lightning_modules.loss_watch import LossWatch
from lightning_modules.noise import (
    alphas_sigmas,
    low_discrepancy_timesteps,
    prediction_weights,
    velocity,
)
from lightning_modules.optimizers import clip_gradients, with_schedule
from lightning_modules.randomness import keyed_rand, keyed_randn

__all__ = ["LatentBank", "StableDiffusionModule", "encode_bank", "load_stable_diffusion"]


class StableDiffusionModule(L.LightningModule):
    """A Stable Diffusion UNet that learns by LoRA, from latents encoded beforehand.

    Of a batch it reads `index` int64 (B,), which leads to the latents of a `LatentBank`, and
    `draw` int64 (B,), the item's unique position in the training stream: all randomness of an item
    comes from (seed, draw).

    Checkpoints hold the trained weights and their average only: the rest is the base model's.

    Args:
        config: The generator's settings, or a plain dict of them as checkpoints hold it.
        base: The base model, whose UNet is taken over and changed; None loads the config's.
        seed: Keys LoRA's initial weights and every item's randomness.

    Raises:
        WeightsError: The base model is missing or of another layout.
    """

    def __init__(
        self,
        config: StableDiffusionConfig | dict[str, Any],
        *,
        base: Base | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if isinstance(config, dict):
            config = StableDiffusionConfig(**config)
        if base is None:
            base = load_base(config.base_model, revision=config.revision)
        self.config = config
        self.seed = seed
        # Plain types: a dataclass here makes Lightning refuse to resume from its checkpoints.
        self.save_hyperparameters({"config": asdict(config), "seed": seed})
        self.scheduler_config, self.base_id = base.scheduler_config, base.id
        self._scaling_factor = base.vae.config.scaling_factor
        self.unet = prepare_unet(base.unet, config=config, seed=seed)
        self.ema = self._new_average()
        self.bank: LatentBank | None = None
        self._base: Base | None = None
        self.prompts: tuple[str, ...] = ()
        alphas_cumprod = DDPMScheduler.from_config(base.scheduler_config).alphas_cumprod
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)

    def set_bank(self, bank: LatentBank) -> None:
        """Say what the training reads.

        Raises:
            ValueError: Latents of another size than the config's.
        """
        expected = tuple(side // 8 for side in self.config.size_hw)
        if tuple(bank.mean.shape[-2:]) != expected:
            raise ValueError(
                f"latents of {tuple(bank.mean.shape[-2:])} for size_hw={self.config.size_hw}, "
                f"which needs {expected}"
            )
        self.bank, self.prompts = bank, bank.prompts

    @classmethod
    def start(cls, config: StableDiffusionConfig, *, seed: int) -> "StableDiffusionModule":
        """The module as training begins, with its base until `release_base`."""
        base = load_base(config.base_model, revision=config.revision)
        module = cls(config, base=base, seed=seed)
        module.keep_base(base)
        return module

    @classmethod
    def load_generator(cls, path: Path, config: StableDiffusionConfig) -> "StableDiffusionModule":
        """See `load_stable_diffusion`."""
        return load_stable_diffusion(path, base_model=config.base_model, revision=config.revision)

    def draw_on_masks(
        self,
        masks: torch.Tensor,
        *,
        seeds: Sequence[int],
        prompts: Sequence[str],
        sampler: StableDiffusionSamplerConfig,
        progress: Progress | None = None,
    ) -> torch.Tensor:
        """Grey images (N, 1, H, W) of `draw`: the image was taught on three equal channels."""
        drawn = self.draw(prompts, seeds=seeds, masks=masks, sampler=sampler, progress=progress)
        return drawn.float().mean(dim=1, keepdim=True)

    def release_base(self) -> Base:
        """Give the base back and forget it: text encoder and VAE are not needed for training."""
        base, self._base = self._base, None
        if base is None:
            raise RuntimeError("no base to give back: call keep_base, or start")
        return base

    def keep_base(self, base: Base) -> None:
        """Give the VAE and the text encoder that `draw` needs; training does without."""
        self._base = base

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        """LoRA's weights, and the input convolution's for `sd_mask`; float32."""
        return [p for p in self.unet.parameters() if p.requires_grad]

    def forward(
        self,
        noisy_latents: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        prompt_embeddings: torch.Tensor,
        mask_channels: torch.Tensor | None,
    ) -> torch.Tensor:
        """Predict noise or velocity (B, 4, h, w), as the base model does, for latents as large."""
        if mask_channels is not None:
            noisy_latents = torch.cat([noisy_latents, mask_channels], dim=1)
        return self.unet(
            noisy_latents, timesteps, encoder_hidden_states=prompt_embeddings, return_dict=False
        )[0]

    def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the batch's mean loss."""
        draws = batch["draw"]
        latents, embeddings, channels = self._inputs(batch)
        key = {"seed": self.seed, "draws": draws, "device": self.device}
        noise = keyed_randn(latents.shape[1:], stream="noise", **key)
        offset = keyed_randn((latents.shape[1], 1, 1), stream="noise_offset", **key)
        noise = (noise + self.config.noise_offset * offset).to(latents)
        start = keyed_rand((), seed=self.seed, draws=[0], stream="timesteps", device=draws.device)
        timesteps = low_discrepancy_timesteps(start[0], draws).to(self.device)
        alpha, sigma = alphas_sigmas(self.alphas_cumprod, timesteps)
        predicted = self(
            alpha * latents + sigma * noise,
            timesteps,
            prompt_embeddings=embeddings,
            mask_channels=channels,
        )
        target = velocity(latents, noise=noise, alpha=alpha, sigma=sigma) if self._is_v else noise
        errors = (predicted.to(target.dtype) - target).square().mean(dim=(1, 2, 3))
        weights = prediction_weights(
            self.alphas_cumprod, timesteps, gamma=self.config.min_snr_gamma, is_velocity=self._is_v
        )
        return (weights * errors).mean()

    def _inputs(self, batch: dict[str, Any]) -> list[torch.Tensor | None]:
        """Latents (B, 4, h, w), embeddings (B, L, D), mask channels (B, 64, h, w) or None."""
        if self.bank is None:
            raise RuntimeError("no latents to learn from: call set_bank first")
        found = training_inputs(
            self.bank,
            index=batch["index"],
            draws=batch["draw"],
            seed=self.seed,
            config=self.config,
            scaling_factor=self._scaling_factor,
        )
        return [None if each is None else each.to(self.device, self.dtype) for each in found]

    @property
    def _is_v(self) -> bool:
        return self.scheduler_config.get("prediction_type", "epsilon") == "v_prediction"

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW on the trained weights; linear warm-up, then as `lr_schedule` says."""
        config = self.config
        optimizer = torch.optim.AdamW(
            self.trained_parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        return with_schedule(
            optimizer,
            warmup_steps=config.warmup_steps,
            steps=config.steps,
            schedule=config.lr_schedule,
        )

    def configure_callbacks(self) -> list[L.Callback]:
        """Refuse losses and weights that are not finite."""
        return [LossWatch(setting="stable_diffusion.learning_rate")]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients."""
        clip_gradients(optimizer, max_norm=self.config.gradient_clip_norm)

    def on_train_start(self) -> None:
        """Bring the averaged weights to the device; they are no part of the module."""
        if self.ema is not None:
            self.ema.to(self.device)

    def optimizer_step(self, *args: Any) -> None:
        """Average the weights once per optimiser step, not once per accumulated batch."""
        super().optimizer_step(*args)
        if self.ema is not None:
            self.ema.step(self.trained_parameters())

    def _new_average(self) -> EMAModel | None:
        decay = self.config.ema_decay
        if decay == 0:
            return None
        return EMAModel(self.trained_parameters(), decay=decay, foreach=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen weights out and add the averaged ones."""
        trained, state = self._trained_names(), checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in trained}
        if self.ema is not None:
            checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the averaged weights and their step."""
        if self.ema is not None:
            self.ema.load_state_dict(checkpoint["ema"])

    def load_state_dict(
        self,
        state_dict: dict[str, Any],
        strict: bool = True,  # noqa: ARG002
        assign: bool = False,
    ) -> _IncompatibleKeys:
        """Load weights of which only frozen ones may be missing, whatever `strict` says.

        Raises:
            WeightsError: A trained weight is missing, or one is unknown or of another shape.
        """
        mine = self.state_dict()
        other = sorted(self._trained_names() - state_dict.keys())
        other += sorted(
            name
            for name, tensor in state_dict.items()
            if name not in mine or mine[name].shape != tensor.shape
        )
        if other:
            raise WeightsError(
                f"the checkpoint is not of this generator (route {self.config.route}, rank "
                f"{self.config.lora_rank}): {len(other)} weights are missing, unknown or of "
                f"another shape, such as {other[0]}"
            )
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def _trained_names(self) -> set[str]:
        return {name for name, p in self.named_parameters() if p.requires_grad}

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Put the averaged weights into the UNet for a while, where there are any."""
        return averaged(self.trained_parameters(), self.ema)

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        masks: torch.Tensor | None,
        sampler: StableDiffusionSamplerConfig,
        progress: Progress | None = None,
    ) -> torch.Tensor:
        """Draw one RGB image for each prompt with the averaged weights.

        Args:
            prompts: B texts.
            seeds: B integers; an image depends on its prompt, mask and seed, not on its batch but
                for float rounding.
            masks: (B, 1, H, W) {0, 1} at the generator's size for `sd_mask`; None for
                `sd_in_channel`.
            sampler: The solver's settings.
            progress: Called with (network passes done, all of them) after each.

        Returns:
            (B, 3, H, W) float32 in [0, 1] on the CPU; empty for no prompts.

        Raises:
            ValueError: Masks or seeds of another number or size, or masks that do not fit the
                route.
            RuntimeError: The module has no VAE; `load_stable_diffusion` or `keep_base` gives it.
        """
        config, base = self.config, self._base
        if base is None:
            raise RuntimeError("no VAE to draw with: call keep_base, or load_stable_diffusion")
        expected = None if config.route == "sd_in_channel" else (len(prompts), 1, *config.size_hw)
        found = None if masks is None else tuple(masks.shape)
        if found != expected or len(seeds) != len(prompts):
            raise ValueError(
                f"route {config.route} takes masks of shape {expected} and {len(prompts)} seeds "
                f"for {len(prompts)} prompts, not {found} and {len(seeds)}"
            )
        is_training = self.unet.training
        self.unet.eval()
        try:
            with self.averaged_weights():
                return draw_images(
                    self.unet,
                    base=base,
                    prompts=prompts,
                    seeds=seeds,
                    masks=masks,
                    config=config,
                    sampler=sampler,
                    progress=progress,
                )
        finally:
            self.unet.train(is_training)

    def save_generator(self, path: str | Path) -> None:
        """Write the averaged LoRA, the input convolution and the settings into a folder.

        `pytorch_lora_weights.safetensors` is what diffusers' `load_lora_weights` takes.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        with self.averaged_weights():
            save_trained(self.unet, folder)
        write_saved(
            folder,
            Saved(config=self.config, seed=self.seed, base_id=self.base_id, prompts=self.prompts),
        )


def load_stable_diffusion(
    path: str | Path, *, base_model: str | None = None, revision: str | None = None
) -> StableDiffusionModule:
    """Load what `save_generator` wrote onto its base model, ready to draw, on the CPU.

    Args:
        path: The folder.
        base_model: The base model that it was fitted on; None takes it from where it lay then.
        revision: Of a name on the hub.

    Raises:
        WeightsError: The base model is missing or another one than the folder names, or a file of
            the folder is missing, damaged, or does not fit.
    """
    folder = Path(path)
    saved = read_saved(folder)
    name, revision = base_of(saved, folder=folder, base_model=base_model, revision=revision)
    base = load_base(name, revision=revision)
    module = StableDiffusionModule(saved.config, base=base, seed=saved.seed)
    load_trained(module.unet, folder)
    module.ema, module.prompts = module._new_average(), saved.prompts
    module.keep_base(base)
    return module.eval()
