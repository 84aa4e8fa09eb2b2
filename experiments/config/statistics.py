"""What a sweep tests, and when a difference counts. Written before the sweep runs; torch-free."""

from dataclasses import dataclass, field
from typing import Literal

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
        if self.real_count is not None and self.real_count < 1:
            raise ValueError(f"statistics.primary.real_count={self.real_count}: at least 1")
        if self.real_fraction is not None and not 0 < self.real_fraction <= 1:
            raise ValueError(
                f"statistics.primary.real_fraction={self.real_fraction}: above 0 and at most 1"
            )


@dataclass(kw_only=True)
class StatisticsConfig:
    """How differences are judged."""

    primary: ContrastConfig = field(default_factory=ContrastConfig)
    """The primary contrast; `primary.enabled: false` for none."""
    min_effect_dice: float = 0.005
    """Smallest difference of mean Dice, in [0, 1], that counts; a smaller one is not shown."""
    min_effect_mm: float = 0.5
    """Smallest difference of the mean absolute error of the head circumference that counts, mm."""
    bootstrap_samples: int = 2000
    """Resamples of exams and supports for an interval."""
    level: float = 0.95
    """Nominal coverage of the intervals, in (0, 1)."""

    def __post_init__(self) -> None:
        for name in ("min_effect_dice", "min_effect_mm"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"statistics.{name}={getattr(self, name)}: a number from 0 on")
        if self.bootstrap_samples < 100:
            raise ValueError(f"statistics.bootstrap_samples={self.bootstrap_samples}: at least 100")
        if not 0 < self.level < 1:
            raise ValueError(f"statistics.level={self.level}: must lie between 0 and 1")

    def min_effect(self, measure: str) -> float:
        """Give the smallest difference of a measure that counts, in the measure's own unit."""
        return self.min_effect_dice if measure == "dice" else self.min_effect_mm
