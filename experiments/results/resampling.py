"""The crossed bootstrap: a mean over images, resampled over exams and over supports at once.

The images of an exam show one head, and the images of a support were segmented by models that saw
the same training images: both are sampled, and neither alone says how far a result would repeat.

Exams (with all their images) and, independently, supports are drawn with replacement. A plain
percentile interval is too narrow for a handful of supports: with five, and exams and supports
that vary alike, it covered 88 % instead of 95 %. So its two quantiles are moved outwards, to
where Student's t puts them for the degrees of freedom that the data have. With three supports that
differ more than exams do, that lies beyond the resamples: the end is then t's own. The p-value is a
t-test with the same standard error.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its interval and test; NaN where fewer than two exams give neither."""

    value: float
    n_exams: int
    n_supports: int
    """With one, only exams are resampled."""
    low: float = math.nan
    high: float = math.nan
    standard_error: float = math.nan
    degrees: float = math.nan
    """Degrees of freedom of the standard error."""
    p: float = math.nan
    """Two-sided p of the mean against zero, not adjusted."""


def crossed_bootstrap(
    values: ArrayLike,
    *,
    exams: ArrayLike,
    supports: ArrayLike,
    seed: int = 0,
    strata: ArrayLike | None = None,
    weights: Mapping[int, float] | None = None,
    n_boot: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Estimate a mean over images with an interval over exams x supports.

    Args:
        values: (N,) finite numbers, a row per image and support, any unit.
        exams: (N,) exam ids; an exam is a cluster of images.
        supports: (N,) support numbers; one value means that only exams are resampled.
        seed: Of the resampling.
        strata: (N,) of the keys of `weights`, or NaN (left out); none gives the plain mean.
        weights: Weight of each stratum's mean; those present are scaled to sum to 1. Resamples that
            lack one of them are left out.
        n_boot: Resamples.
        level: Nominal coverage in (0, 1).

    Returns:
        The estimate; with fewer than two exams (in any stratum) its interval and p are NaN, for
        empty input its value too. Its ends lie within the values. With two supports no resampling
        covers what a third would show.

    Raises:
        ValueError: If a value is not finite or the lengths differ.

    Source: Owen 2007, "The pigeonhole bootstrap" (crossed resampling); Hesterberg 2015, "What
        teachers should know about the bootstrap" (expanded percentile); Cameron, Gelbach and
        Miller 2011 (variance of two-way clusters); Satterthwaite 1946 (degrees of freedom).
    """
    table = _tabulate(values, exams=exams, supports=supports, strata=strata, weights=weights)
    n_supports, n_exams = table.sums.shape[1:]
    counts = {"n_exams": n_exams, "n_supports": n_supports}
    if table.sums.size == 0:
        return Estimate(value=math.nan, **counts)
    value = float(_means(table, np.ones((1, n_supports)), np.ones((1, n_exams)))[0])
    if min(table.exams_of_strata()) < 2:
        return Estimate(value=value, **counts)
    rng = np.random.default_rng(seed)
    exam_draws = _draw_counts(n_exams, n_boot, rng=rng)
    support_draws = _draw_counts(n_supports, n_boot, rng=rng)
    means = _means(table, support_draws, exam_draws)
    # A resample without a stratum is of another mean; passing its weight on would shift the tail.
    means = means[np.isfinite(means)]
    error, degrees = _standard_error(table)
    judged = {"value": value, "error": error, "degrees": degrees, "level": level}
    low, high, p = _judge(means, **judged, n_supports=n_supports)
    low, high = max(low, np.min(values)), min(high, np.max(values))
    found = {"standard_error": error, "degrees": degrees, "low": low, "high": high, "p": p}
    return Estimate(value=value, **counts, **found)


@dataclass(frozen=True)
class _Table:
    sums: np.ndarray
    """(strata, supports, exams) sums of the values."""
    counts: np.ndarray
    """(strata, supports, exams) numbers of values."""
    shares: np.ndarray
    """(strata,) weights that sum to 1."""

    def stratum_of_exams(self) -> np.ndarray:
        """Give (exams,) the stratum that holds most of an exam's values."""
        return self.counts.sum(axis=1).argmax(axis=0)

    def exams_of_strata(self) -> np.ndarray:
        """Give (strata,) numbers of exams."""
        return np.bincount(self.stratum_of_exams(), minlength=len(self.shares))


def _tabulate(
    values: ArrayLike,
    *,
    exams: ArrayLike,
    supports: ArrayLike,
    strata: ArrayLike | None,
    weights: Mapping[int, float] | None,
) -> _Table:
    array = np.asarray(values, dtype=np.float64)
    exam, support = np.asarray(exams), np.asarray(supports)
    layers = np.zeros(len(array)) if strata is None else np.asarray(strata, dtype=np.float64)
    if array.ndim != 1 or not array.shape == exam.shape == support.shape == layers.shape:
        raise ValueError("crossed_bootstrap: values, exams, supports, strata must be equal vectors")
    if not np.isfinite(array).all():
        raise ValueError("crossed_bootstrap: a value is not finite")
    known = {0: 1.0} if strata is None else dict(weights or {})
    kept = np.isin(layers, list(known))
    present = [key for key in known if (layers[kept] == key).any()]
    layer = np.array([present.index(key) for key in layers[kept]], dtype=int)
    exam, exam_names = pd.factorize(exam[kept])
    support, support_names = pd.factorize(support[kept], use_na_sentinel=False)
    shape = (len(present), len(support_names), len(exam_names))
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (layer, support, exam), array[kept])
    np.add.at(counts, (layer, support, exam), 1)
    share = np.array([known[key] for key in present], dtype=np.float64)
    return _Table(sums, counts, share / share.sum() if len(share) else share)


def _draw_counts(n: int, n_boot: int, *, rng: np.random.Generator) -> np.ndarray:
    """Give (n_boot, n): how often each of n things was drawn in n draws."""
    drawn = rng.integers(n, size=(n_boot, n)) + n * np.arange(n_boot)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * n_boot).reshape(n_boot, n).astype(np.float64)


def _means(table: _Table, support_draws: np.ndarray, exam_draws: np.ndarray) -> np.ndarray:
    """Give (n_boot,) weighted means; NaN where a stratum was not drawn."""
    total = np.zeros(len(exam_draws))
    for sums, counts, share in zip(table.sums, table.counts, table.shares, strict=True):
        n = np.sum((support_draws @ counts) * exam_draws, axis=1)
        top = np.sum((support_draws @ sums) * exam_draws, axis=1)
        total += share * np.divide(top, n, out=np.full_like(n, np.nan), where=n > 0)
    return total


def _standard_error(table: _Table) -> tuple[float, float]:
    """Two-way clustered standard error of the mean and its degrees of freedom."""
    n = table.counts.sum(axis=(1, 2), keepdims=True)
    centred = table.sums - table.counts * table.sums.sum(axis=(1, 2), keepdims=True) / n
    influence = (table.shares[:, None, None] * centred / n).sum(axis=0)
    # Exams are drawn within their stratum, each of which has its own n/(n-1).
    per_exam, stratum = influence.sum(axis=0) ** 2, table.stratum_of_exams()
    n_exams = table.exams_of_strata()
    parts = n_exams / (n_exams - 1) * np.bincount(stratum, weights=per_exam)
    by_exam, spread = parts.sum(), np.sum(parts**2 / (n_exams - 1))
    n_supports = len(influence)
    if n_supports == 1:
        degrees = by_exam**2 / spread if spread > 0 else n_exams.sum() - 1
        return float(np.sqrt(by_exam)), float(degrees)
    by_support = n_supports / (n_supports - 1) * np.sum(influence.sum(axis=1) ** 2)
    # What is neither exam nor support stands in both terms.
    variance = max(by_exam + by_support - np.sum(influence**2), by_exam, by_support)
    spread += by_support**2 / (n_supports - 1)
    least = min(n_supports, n_exams.min()) - 1
    degrees = max(variance**2 / spread, least) if spread > 0 else least
    return float(np.sqrt(variance)), float(degrees)


def _judge(
    means: np.ndarray,
    *,
    value: float,
    error: float,
    degrees: float,
    level: float,
    n_supports: int,
) -> tuple[float, float, float]:
    from scipy.stats import norm, t  # slow to import, needed here only

    spread = means.std()
    if spread <= 1e-12 * max(abs(value), 1e-300) or error == 0:
        return value, value, 1.0 if value == 0 else 0.0
    # The bootstrap's own spread lacks the factor n/(n-1) of each axis; it is never narrowed.
    widen, upper = max(error / spread, 1.0), (1 + level) / 2
    tail = norm.cdf(-widen * t.ppf(upper, degrees))
    low, high = np.quantile(means, [tail, 1 - tail])
    if n_supports > 1 and tail * len(means) < 1:
        # Not by the few exams of a stratum, whose degrees may be one.
        reach = t.ppf(upper, max(degrees, n_supports - 1))
        low, high = min(low, value - reach * error), max(high, value + reach * error)
    return float(low), float(high), float(2 * t.sf(abs(value) / error, degrees))
