"""The generator `two_levels`: its settings and its row. Torch-free."""

from dataclasses import asdict, dataclass

from lightning_modules.generators.table import GENERATORS, GeneratorRow


@dataclass(kw_only=True)
class TwoLevelsConfig:
    """A generator of two intensities, inside and outside of the head, under noise."""

    size_hw: tuple[int, int] = (32, 48)
    noise: float = 0.05
    steps: int = 40
    batch_size: int = 4
    learning_rate: float = 0.02
    precision: str = "32-true"

    def __post_init__(self):
        self.size_hw = tuple(self.size_hw)

    def hashed(self):
        return {"kind": "two_levels", **asdict(self)}


GENERATORS["two_levels"] = GeneratorRow(
    label="two levels",
    settings=TwoLevelsConfig,
    section=None,
    module="my_rooms.two_levels_module:TwoLevels",
)
