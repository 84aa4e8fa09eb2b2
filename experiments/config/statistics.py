"""What a sweep tests, and when a difference counts. Written before the sweep runs; torch-free."""

from dataclasses import dataclass, field
from typing import Literal

from datamodules.allowed import above, at_least, inside

Measure = Literal["hc_abs_err_mm", "dice"]


@dataclass(kw_only=True)
class ContrastConfig:
    """The one comparison that the sweep is for; every other one is adjusted for their number."""

    enabled: bool = True
    """Whether there is a primary contrast; without one all comparisons are adjusted."""
    condition: str = "synthetic_same_budget_strong"
    """Condition that is compared."""
    baseline: str = "strong"
    """Condition that is subtracted."""
    real_count: int | None = 20
    """Real images of both, where the amount is a number; null where it is a share."""
    real_fraction: float | None = None
    """Real images of both, where the amount is a share of the train part, in (0, 1]."""
    measure: Measure = "hc_abs_err_mm"
    """Absolute error of the head circumference (mm) or Dice; the other one stands beside it."""
    prompt: str = "whole_image"
    """Prompt protocol."""
    segmenter: str | None = None
    """Segmenter of both; null takes the first of `sweep.segmenter`."""
    generator: str | None = None
    """Generator, where the condition has one; null takes the first of the sweep."""
    choice: str | None = None
    """How the real images of both were chosen; null takes the first of `sweep.choice`."""

    def __post_init__(self) -> None:
        if not self.condition or self.condition == self.baseline:
            raise ValueError(
                f"statistics.primary: condition={self.condition!r} and baseline={self.baseline!r} "
                "must be two conditions"
            )
        if (self.real_count is None) == (self.real_fraction is None):
            raise ValueError(
                f"statistics.primary: give one of real_count={self.real_count} and "
                f"real_fraction={self.real_fraction}, and set the other to null"
            )
        at_least(1).check(self, "real_count", section="statistics.primary")
        above(0, at_most=1).check(self, "real_fraction", section="statistics.primary")


@dataclass(kw_only=True)
class StatisticsConfig:
    """How differences are judged."""

    primary: ContrastConfig = field(default_factory=ContrastConfig)
    """The primary contrast; `primary.enabled: false` for none."""
    rivals: list[str] = field(default_factory=list)
    """Conditions that every one with synthetic pairs is compared with too, beside the baseline."""
    min_effect_dice: float = 0.005
    """Smallest difference of mean Dice, in [0, 1], that counts; a smaller one is not shown."""
    min_effect_mm: float = 0.5
    """Smallest difference of the mean absolute error of the head circumference that counts, mm."""
    bootstrap_samples: int = 2000
    """Resamples of exams and supports for the interval of a comparison or of a trial; rows of
    several trials take 2,000."""
    level: float = 0.95
    """Nominal coverage of the intervals, in (0, 1)."""

    def __post_init__(self) -> None:
        at_least(0).check(self, "min_effect_dice", "min_effect_mm", section="statistics")
        at_least(100).check(self, "bootstrap_samples", section="statistics")
        inside(0, 1).check(self, "level", section="statistics")

    def min_effect(self, measure: str) -> float:
        """Give the smallest difference of a measure that counts, in the measure's own unit."""
        return self.min_effect_dice if measure == "dice" else self.min_effect_mm
