"""A generator of two intensities."""

import lightning as L
import torch
from safetensors.torch import load_file, save_file


class TwoLevels(L.LightningModule):
    """The mean intensity outside and inside of the head."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.levels = torch.nn.Parameter(torch.tensor([0.5, 0.5]))

    @classmethod
    def start(cls, config, *, seed):
        return cls(config)

    def forward(self, masks):
        return self.levels[masks.long()]

    def training_step(self, batch):
        return torch.nn.functional.mse_loss(self(batch["mask"]), batch["image"])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.config.learning_rate)

    @torch.no_grad()
    def draw_on_masks(self, masks, *, seeds, prompts, sampler, progress):
        noise = [
            torch.randn(masks.shape[1:], generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        images = self(masks) + self.config.noise * torch.stack(noise).to(masks.device)
        progress(len(masks), len(masks))
        return images.clamp(0, 1)

    def save_generator(self, folder):
        folder.mkdir(exist_ok=True)
        save_file(self.state_dict(), folder / "levels.safetensors")

    @classmethod
    def load_generator(cls, folder, config):
        module = cls(config)
        module.load_state_dict(load_file(folder / "levels.safetensors"))
        return module.eval()
