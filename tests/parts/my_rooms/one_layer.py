"""The segmenter `one_layer`: its settings and its row. Torch-free."""

from dataclasses import asdict, dataclass

from lightning_modules.segmenters.table import SEGMENTERS, SegmenterRow


@dataclass(kw_only=True)
class OneLayerConfig:
    """A segmenter of one convolution."""

    frame_hw: tuple[int, int] = (32, 48)
    side_px: int = 9
    steps: int = 80
    epochs: int | None = None
    batch_size: int = 4
    synthetic_share: float = 0.5
    early_stopping_patience: int | None = None
    learning_rate: float = 0.02
    precision: str = "32-true"

    # What no recipe sets has no annotation.
    resize_mode = "squash"
    image_factor = 1
    cache = None

    def __post_init__(self):
        # Manifests give lists.
        self.frame_hw = tuple(self.frame_hw)
        if self.side_px % 2 == 0:
            raise ValueError(f"side_px={self.side_px}: must be odd")

    def hashed(self):
        return {"kind": "one_layer", **asdict(self)}


SEGMENTERS["one_layer"] = SegmenterRow(
    label="one layer",
    settings=OneLayerConfig,
    section=None,
    module="my_rooms.one_layer_module:OneLayer",
    takes_prompt=False,
    has_zero_shot=False,
    spreads=True,
)
