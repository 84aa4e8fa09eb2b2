"""The measures of a row: how each column of results.csv is called, scaled and compared."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Measure:
    """A column of results.csv as people read it."""

    column: str
    heading: str
    """In a table of all measures."""
    factor: int
    """From the column's unit to the printed one: 100 for Dice in per cent."""
    digits: int
    is_better_high: bool
    title: str = ""
    """In a table of this measure alone."""
    has_spread: bool = False
    """Whether a table shows its standard deviation over trials."""

    @property
    def spread_column(self) -> str:
        """Column of its standard deviation over models."""
        return self.column.removesuffix("_mean") + "_sd"


# fmt: off
_ALL = (
    Measure("dice_trimester_weighted_mean", "weighted Dice %", 100, 1, True,
            "trimester-weighted Dice %", True),
    Measure("dice_mean", "Dice %", 100, 1, True, "Dice %", True),
    Measure("dice_median", "median %", 100, 1, True),
    Measure("dice_share_below_090", "share below 0.9", 1, 2, False),
    Measure("hc_abs_err_mm_mean", "HC error mm", 1, 2, False, "HC error (ADF), mm", True),
    Measure("hc_abs_err_mm_p95", "HC error p95 mm", 1, 2, False),
    Measure("hausdorff_mm_mean", "HD mm", 1, 2, False, "Hausdorff distance, mm"),
    Measure("dice_256_mean", "Dice@256 %", 100, 1, True, "Dice at 256x256 %"),
    # The output that is not shown, see `rows.choose_output`.
    Measure("mask_dice_mean", "mask Dice %", 100, 1, True),
    Measure("ellipse_dice_mean", "ellipse Dice %", 100, 1, True),
    # Means over models, so they may be no whole numbers.
    Measure("n_not_found", "not found", 1, 1, False),
    Measure("n_not_fitted", "no ellipse", 1, 1, False),
)
# fmt: on
MEASURES = {measure.column: measure for measure in _ALL}
"""Columns of results.csv that a cell averages over models."""

WORDS = {
    "dice_weighted": MEASURES["dice_trimester_weighted_mean"],
    "dice": MEASURES["dice_mean"],
    "dice_256": MEASURES["dice_256_mean"],
    "share_below_090": replace(
        MEASURES["dice_share_below_090"], title="share of Dice below 0.9, %", factor=100, digits=1
    ),
    "hc_abs_err_mm": MEASURES["hc_abs_err_mm_mean"],
    "hausdorff_mm": MEASURES["hausdorff_mm_mean"],
}
"""Words of `sonosweep table --measure`."""
