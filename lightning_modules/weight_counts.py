"""How many weights are trained, and the memory that they take."""

from collections.abc import Mapping
from typing import Any

from torch import nn

ADAM_STATES = 2
"""Tensors that AdamW keeps for each weight."""


def trainable_summary(parts: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Count weights by part, and the memory that they, their gradients and AdamW's state take.

    Args:
        parts: Modules by name, no weight in two of them.

    Returns:
        `trainable` and `all` parameters of each part and in all; `weight_bytes`, `gradient_bytes`
        and `optimizer_bytes`. Activations come on top.
    """
    counts = {
        name: {
            "trainable": sum(p.numel() for p in part.parameters() if p.requires_grad),
            "all": sum(p.numel() for p in part.parameters()),
        }
        for name, part in parts.items()
    }
    weights = [p for part in parts.values() for p in part.parameters()]
    trained = [p for p in weights if p.requires_grad]
    gradient_bytes = sum(p.numel() * p.element_size() for p in trained)
    return {
        **counts,
        "trainable": sum(p.numel() for p in trained),
        "all": sum(p.numel() for p in weights),
        "weight_bytes": sum(p.numel() * p.element_size() for p in weights),
        "gradient_bytes": gradient_bytes,
        "optimizer_bytes": ADAM_STATES * gradient_bytes,
    }
