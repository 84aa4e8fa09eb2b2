"""A segmenter of one convolution."""

import lightning as L
import torch
from safetensors.torch import load_file, save_file

from lightning_modules.losses import dice_cross_entropy_loss


class OneLayer(L.LightningModule):
    """Logits of the head from the brightness around a pixel."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.layer = torch.nn.Conv2d(1, 1, config.side_px, padding=config.side_px // 2)

    @classmethod
    def start(cls, config, *, seed, cached, captures):
        return cls(config)

    def predict(self, batch, boxes_xyxy_px=None):
        return self.layer(batch["image"].to(self.device))

    def training_step(self, batch):
        logits, mask = self.predict(batch), batch["mask"]
        return dice_cross_entropy_loss(logits, mask, valid_hw=batch["valid_hw"])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.config.learning_rate)

    def parts(self):
        return {"layer": self.layer}

    def save(self, path):
        save_file(self.state_dict(), path)

    @classmethod
    def load(cls, path, config):
        module = cls(config)
        module.load_state_dict(load_file(path))
        return module.eval()
