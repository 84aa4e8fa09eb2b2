"""The measures of a row: how each column of results.csv is called, scaled and compared."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A column of results.csv as people read it."""

    column: str
    heading: str
    """In a table of all measures."""
    factor: int = 1
    """From the column's unit to the printed one: 100 for Dice in per cent."""
    digits: int
    is_better_high: bool
    has_spread: bool = False
    """Whether a table shows its standard deviation over trials."""
    title: str = ""
    """In a table of this measure alone."""

    @property
    def spread_column(self) -> str:
        """Column of its standard deviation over models."""
        return self.column.removesuffix("_mean") + "_sd"


_PER_CENT = {"factor": 100, "digits": 1}
_MM = {"digits": 2, "is_better_high": False}
_ALL = (
    Measure(
        column="dice_trimester_weighted_mean",
        heading="weighted Dice %",
        title="trimester-weighted Dice %",
        is_better_high=True,
        has_spread=True,
        **_PER_CENT,
    ),
    Measure(
        column="dice_mean",
        heading="Dice %",
        title="Dice %",
        is_better_high=True,
        has_spread=True,
        **_PER_CENT,
    ),
    Measure(column="dice_median", heading="median %", is_better_high=True, **_PER_CENT),
    Measure(
        column="dice_share_below_090", heading="share below 0.9", digits=2, is_better_high=False
    ),
    Measure(
        column="hc_abs_err_mm_mean",
        heading="HC error mm",
        title="HC error (ADF), mm",
        has_spread=True,
        **_MM,
    ),
    Measure(column="hc_abs_err_mm_p95", heading="HC error p95 mm", **_MM),
    Measure(column="hausdorff_mm_mean", heading="HD mm", title="Hausdorff distance, mm", **_MM),
    Measure(
        column="dice_256_mean",
        heading="Dice@256 %",
        title="Dice at 256x256 %",
        is_better_high=True,
        **_PER_CENT,
    ),
    # A mean over models, so it may be no whole number.
    Measure(column="n_not_found", heading="not found", digits=1, is_better_high=False),
)
MEASURES = {measure.column: measure for measure in _ALL}
"""Columns of results.csv that a cell averages over models."""

WORDS = {
    "dice_weighted": MEASURES["dice_trimester_weighted_mean"],
    "dice": MEASURES["dice_mean"],
    "dice_256": MEASURES["dice_256_mean"],
    "share_below_090": replace(
        MEASURES["dice_share_below_090"], title="share of Dice below 0.9, %", **_PER_CENT
    ),
    "hc_abs_err_mm": MEASURES["hc_abs_err_mm_mean"],
    "hausdorff_mm": MEASURES["hausdorff_mm_mean"],
}
"""Words of `sonosweep table --measure`."""
