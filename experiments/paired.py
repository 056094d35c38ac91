"""Paired differences of draws: mean, Student's interval, p, Holm's correction, power."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The differences of a score between two arms, one value per draw, in points."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def sd(self) -> float:
        """The standard deviation of the differences over the draws."""
        return float(np.std(self.values, ddof=1))

    @property
    def half_width(self) -> float:
        """Half of Student's 95 % interval of the mean."""
        quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(self.values) - 1)
        return float(quantile) * self.sd / math.sqrt(len(self.values))

    @property
    def p(self) -> float:
        """The two-sided p of the paired t test that the mean is 0."""
        return float(stats.ttest_1samp(self.values, 0).pvalue)

    def power(self, effect: float, alpha: float = 0.05) -> float:
        """Return the power of this test for a true effect, if these draws have the true SD."""
        return power(effect, self.sd, len(self.values), alpha)

    def __str__(self) -> str:
        each = " ".join(f"{value:+.1f}" for value in self.values)
        return f"{each} = {self.mean:+.1f} ± {self.half_width:.1f} (SD {self.sd:.1f}, p {self.p:.2g})"


def power(effect: float, sd: float, draws: int, alpha: float = 0.05) -> float:
    """Return the power of the two-sided paired t test for a true effect.

    Args:
        sd: Standard deviation of the differences.
    """
    freedom = draws - 1
    critical = stats.t.ppf(1 - alpha / 2, freedom)
    noncentrality = abs(effect) / sd * math.sqrt(draws)

    upper_tail = float(stats.nct.sf(critical, freedom, noncentrality))
    lower_tail = float(stats.nct.cdf(-critical, freedom, noncentrality))
    total = upper_tail + lower_tail
    # scipy returns NaN for a tail that is too small to compute: the other one is then 1.
    return 1.0 if math.isnan(total) else total


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order of the given values."""
    corrected = [1.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])

    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
