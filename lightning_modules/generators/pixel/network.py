"""A small UNet on pixels that is told where the head is by a filled mask."""

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import nn

from lightning_modules.generators.pixel.config import GeneratorConfig
from lightning_modules.generators.pixel.spectral import (
    cosine_basis,
    precondition,
    prior_spreads,
    to_channels,
    to_image,
)
from lightning_modules.noise import alphas_sigmas, schedule_alphas_cumprod

# Every channel count is a multiple of it, and narrow levels still have several groups.
_NORM_GROUPS = 8


def mask_condition(mask: torch.Tensor, *, dropped: torch.Tensor | None = None) -> torch.Tensor:
    """Turn a filled mask into the network's condition.

    Args:
        mask: (B, 1, H, W) {0, 1}.
        dropped: (B,) bool, items that must not see their mask; none where it is None.

    Returns:
        (B, 1, H, W) float32: 1 inside, -1 outside, and 0 everywhere for a dropped mask, a value
        that no mask has: an image without a head is -1 everywhere.
    """
    condition = 2 * mask.float() - 1
    if dropped is None:
        return condition
    return condition.masked_fill(dropped.view(-1, 1, 1, 1), 0.0)


class MaskGuidedUNet(nn.Module):
    """Predict v from a noisy image, its timestep and a mask condition.

    Squares of `patch` pixels become channels first, the image's as cosine coefficients with
    their own preconditioning (`spectral.py`), the condition's as they are: at patch 4 a level
    costs a sixteenth of its cost on pixels. The condition is concatenated there, so that it acts
    at full detail. A UNet on that grid gives the rest of v.

    Trainable parameters: 2,648,392 with the default config (patch 2, channels 32, 32, 64, 128);
    161,144 at patch 2 with channels 16, 32 and no attention (tests); 85,304,992 at patch 4 with
    channels 128, 256, 384, 512, two layers a block and attention "deepest" (256x384 on a GPU).
    """

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.patch = config.patch
        levels = len(config.block_out_channels)
        plain = levels - (config.attention == "deepest")
        pixels = config.patch**2
        self.unet = UNet2DModel(
            in_channels=2 * pixels,
            out_channels=pixels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * (levels - plain),
            up_block_types=("AttnUpBlock2D",) * (levels - plain) + ("UpBlock2D",) * plain,
            add_attention=config.attention != "none",
            attention_head_dim=None,
            norm_num_groups=_NORM_GROUPS,
        )
        # v starts as the Wiener estimate.
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)
        # Measured on CPU: 1.2 times the images a second of the default layout.
        self.unet.to(memory_format=torch.channels_last)
        self.log_spreads = nn.Parameter(prior_spreads(config.patch).log())
        self.register_buffer("basis", cosine_basis(config.patch), persistent=False)
        alphas_cumprod = schedule_alphas_cumprod(snr_shift=config.snr_shift)
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)

    def forward(
        self, noisy_image: torch.Tensor, *, timesteps: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        """Predict the velocity.

        Args:
            noisy_image: (B, 1, H, W) float, x_t.
            timesteps: (B,) int64 in [0, 1000).
            condition: (B, 1, H, W) as `mask_condition` makes it.

        Returns:
            (B, 1, H, W) v, float32 also under autocast.
        """
        # The filter's terms differ by orders of magnitude: only the UNet may run in bf16.
        with torch.autocast(noisy_image.device.type, enabled=False):
            alpha, sigma = alphas_sigmas(self.alphas_cumprod, timesteps)
            terms = precondition(alpha=alpha, sigma=sigma, spreads=self.log_spreads.exp())
            c_in, c_skip, c_out = terms
            noisy = to_channels(noisy_image.float(), basis=self.basis, patch=self.patch)
        channels = torch.cat([c_in * noisy, F.pixel_unshuffle(condition, self.patch)], dim=1)
        rest = self.unet(channels.to(memory_format=torch.channels_last), timesteps).sample
        with torch.autocast(noisy_image.device.type, enabled=False):
            velocity = c_skip * noisy + c_out * rest.float()
            return to_image(velocity, basis=self.basis, patch=self.patch)
