"""Depthwise convolutions in float32 on a CPU, where their gradients in bf16 take far longer."""

import torch
from timm.layers import Conv2dSame


class _InFloat32:
    """Before a convolution's class: on a CPU it computes outside of autocast."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve (B, C, H, W)."""
        if x.device.type != "cpu":
            return super().forward(x)  # type: ignore[misc]
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())  # type: ignore[misc]


class _Conv(_InFloat32, torch.nn.Conv2d):
    pass


class _ConvSame(_InFloat32, Conv2dSame):
    pass


_CLASSES = {torch.nn.Conv2d: _Conv, Conv2dSame: _ConvSame}


def keep_depthwise_in_float32(network: torch.nn.Module) -> None:
    """Let a network's depthwise convolutions compute so; names and weights stay.

    oneDNN has no fast kernels for their gradients in bf16: a step of an EfficientNet-Lite0 U-Net
    takes 0.6 of the time this way.
    """
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and module.groups > 1 and type(module) in _CLASSES:
            module.__class__ = _CLASSES[type(module)]
