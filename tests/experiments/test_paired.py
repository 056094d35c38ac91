"""Paired differences: worked examples, and the figures that docs/results.md states about the
committed rows."""

import pytest

from experiments.differences import silent_difference
from experiments.paired import Difference, holm, power


def test_a_difference():
    """Student's quantile for 2 is 4.3027."""
    gain = Difference((1.0, 2.0, 3.0))
    assert str(gain) == "+1.0 +2.0 +3.0 = +2.0 ± 2.5 (SD 1.0, p 0.074)"


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_power():
    """Without an effect it is alpha; a one-sample t test of 6 values and an effect of 1.6 SD:
    0.87."""
    assert power(0.0, 1.0, 6) == pytest.approx(0.05)
    assert power(4.0, 2.5, 6) == pytest.approx(0.87, abs=0.01)
    assert power(100.0, 1.0, 6) == 1.0


@pytest.mark.parametrize(
    ("arm", "base", "mean", "half_width", "p"),
    [
        ("crops-all-kept", "permuted", 4.6, 2.6, 0.006),
        ("prompter", "permuted", 3.8, 1.9, 0.004),
        ("true", "permuted", 10.4, 3.8, 0.001),
        ("crops-all-kept", "none", 2.7, 5.1, 0.235),
    ],
)
def test_the_silent_study(arm, base, mean, half_width, p):
    gain = silent_difference(arm, base)
    assert gain.mean == pytest.approx(mean, abs=0.05)
    assert gain.half_width == pytest.approx(half_width, abs=0.05)
    assert gain.p == pytest.approx(p, abs=0.0005)
