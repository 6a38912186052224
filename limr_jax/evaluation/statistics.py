"""Estimates with intervals that hold the true value 95 times in 100.

Over seeds, which are few: Student's t, of values or of paired differences. Over the
problems of a held-out set: Wilson's score interval and its relatives, since a share of
0 of 30 is not known to be 0. A bootstrap does neither: that of three seeds is their
least and their largest, which hold the truth three times of four.

tests/evaluation/test_statistics.py has by simulation how often each interval holds the
truth.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import bdtr, nctdtrinc, ndtri, stdtr, stdtrit

LEVEL = 0.95
_Z = float(ndtri((1 + LEVEL) / 2))  # 1.96


class Estimate(NamedTuple):
    """A value and its interval; not a number where there is none."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """The value and the interval's ends by name; None where there is no number."""
        return {
            name: x if math.isfinite(x) else None for name, x in self._asdict().items()
        }


NOTHING = Estimate(math.nan, math.nan, math.nan)


# ---- over seeds ------------------------------------------------------------------


def t_quantile(freedom: float, chance: float = (1 + LEVEL) / 2) -> float:
    """The quantile of Student's t: it lies below this with probability `chance`.

    freedom: degrees of freedom.
    """
    return float(stdtrit(freedom, chance))


def mean(value_X: np.ndarray) -> Estimate:
    """The mean over seeds and its 95 % t interval, x̄ ± t_{n−1} s / √n.

    value_X: one value a seed, or one paired difference; not a number where there is no
    run. One value alone has no interval.
    """
    known = _known(value_X)
    if not known.size:
        return NOTHING
    center = float(known.mean())
    if known.size == 1:
        return Estimate(center, math.nan, math.nan)
    error = float(known.std(ddof=1)) / math.sqrt(known.size)
    half = t_quantile(known.size - 1) * error
    return Estimate(center, center - half, center + half)


def t_test(value_X: np.ndarray) -> float:
    """The two-sided p of the t-test of a mean of 0; nan for fewer than two values.

    Of paired differences it is the paired t-test, below .05 where the interval of
    `mean` leaves out 0. Of equal ones it is 1: accuracies are multiples of 1 / N, so
    two seeds may well come out equal, which says nothing of how far seeds are apart.
    """
    known = _known(value_X)
    if known.size < 2:
        return math.nan
    center, error = abs(known.mean()), known.std(ddof=1) / math.sqrt(known.size)
    if error <= 1e-12 * center:  # but for rounding they are equal
        return 1.0
    return float(2 * stdtr(known.size - 1, -center / error))


def holm(p_X: Sequence[float]) -> list[float]:
    """The p of each comparison, adjusted for all of them by Holm's step-down (1979).

    Rejecting where it is below .05 keeps the chance of any false rejection below .05.
    What is not a number is no comparison, and stays.
    """
    order = sorted((p, c) for c, p in enumerate(p_X) if not math.isnan(p))
    adjusted, largest = list(p_X), 0.0
    for rank, (p, c) in enumerate(order):
        # The r-th smallest of m, r from 0, times m − r; and never below a smaller one.
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[c] = largest
    return adjusted


def resolvable(deviation: float, pairs: int, *, power: float = 0.8) -> float:
    """The true difference that a paired t-test at 5 % finds with probability `power`.

    It is in units of `deviation`. pairs: the number of pairs. deviation: the standard
    deviation of the paired differences. The test's statistic is then Student's t with a
    noncentrality of difference · √pairs / deviation.
    """
    # The noncentrality of which t exceeds its 97.5 % quantile with chance `power`.
    shift = nctdtrinc(pairs - 1, 1 - power, t_quantile(pairs - 1))
    return float(shift) * deviation / math.sqrt(pairs)


def _known(value_X: np.ndarray) -> np.ndarray:
    value_X = np.asarray(value_X, np.float64)
    return value_X[np.isfinite(value_X)]


# ---- over problems ---------------------------------------------------------------


def proportion(part_N: np.ndarray, whole_N: np.ndarray) -> Estimate:
    """The share Σ part / Σ whole of problems and its 95 % interval; 0 ≤ part ≤ whole.

    Where each problem is all right or all wrong, as with one response: Wilson's score
    interval (1927). Else responses to one problem are alike, and the problems are what
    was drawn: the interval of Agresti and Coull (1998), whose two successes and two
    failures are here two problems solved and two unsolved, with the variance of what
    each problem came to. Both are within 0 and 1, and neither is empty at the ends.
    """
    part_N, whole_N = (np.asarray(x, np.float64) for x in (part_N, whole_N))
    total = whole_N.sum()
    if not total > 0:
        return NOTHING
    value = float(part_N.sum() / total)
    weight = np.sum(whole_N**2) / total  # of a problem: k where all have k responses
    # total / weight = (Σ whole)² / Σ whole², Kish's effective number of problems.
    if np.all((part_N == 0) | (part_N == whole_N)):
        low, high = _wilson(value, total / weight)
        return Estimate(value, low, high)
    # Four problems more, of the mean weight, two solved and two not: their squares
    # around the center are `added`.
    total += 4 * weight
    center = (part_N.sum() + 2 * weight) / total
    added = 2 * weight**2 * (center**2 + (1 - center) ** 2)
    squares = np.sum((part_N - center * whole_N) ** 2) + added
    half = _Z * math.sqrt(squares) / total
    low, high = _within(center - half, center + half, least=0.0)
    return Estimate(value, low, high)


def _wilson(share: float, count: float) -> tuple[float, float]:
    """Both roots of |share − π| = z √(π (1 − π) / count)."""
    square = _Z**2 / count
    # Squared, a quadratic equation in π: π = center ± half.
    center = (share + square / 2) / (1 + square)
    spread = share * (1 - share) / count + square / count / 4
    half = _Z * math.sqrt(spread) / (1 + square)
    low = center - half if share > 0 else 0.0  # not 1e-18
    return _within(low, center + half if share < 1 else 1.0, least=0.0)


def _within(low: float, high: float, *, least: float) -> tuple[float, float]:
    return float(max(least, low)), float(min(1.0, high))


def ratio(part_N: np.ndarray, whole_N: np.ndarray) -> Estimate:
    """The ratio Σ part / Σ whole over problems and its 95 % t interval.

    It is for what is no share: tokens of a response, nats of an answer. The variance is
    the linear one, N / (N − 1) Σ (part − value · whole)² / (Σ whole)²: where all wholes
    are equal, that of the mean. One problem alone has no interval.
    """
    part_N, whole_N = (np.asarray(x, np.float64) for x in (part_N, whole_N))
    count = int(np.sum(whole_N > 0))
    if not count:
        return NOTHING
    total = float(whole_N.sum())
    value = float(part_N.sum()) / total
    if count == 1:
        return Estimate(value, math.nan, math.nan)
    squares = np.sum((part_N - value * whole_N) ** 2) * count / (count - 1)
    half = t_quantile(count - 1) * math.sqrt(squares) / total
    return Estimate(value, value - half, value + half)


def paired(difference_N: np.ndarray) -> Estimate:
    """The mean difference of two policies on the same problems, and its 95 % interval.

    difference_N: from −1 to 1.

    The interval of Bonett and Price (2012): of a sample with two problems more, one
    that is won and one that is lost. Where nothing differs it is not empty.
    """
    difference_N = np.asarray(difference_N, np.float64)
    count = difference_N.size + 2
    center = difference_N.sum() / count
    # The two added differences, 1 and −1, are 0 in the sum and 2 in the squares.
    variance = (np.sum(difference_N**2) + 2) / count - center**2
    half = _Z * math.sqrt(variance / count)
    low, high = _within(center - half, center + half, least=-1.0)
    return Estimate(float(difference_N.mean()), low, high)


def sign_test(won: int, lost: int) -> float:
    """McNemar's exact two-sided p of two policies on the same problems.

    It is a fair coin's: won and lost count the problems in which the policies differ.
    """
    # Twice the smaller tail; of equal counts it has the middle too, and is above 1.
    return min(1.0, 2 * float(bdtr(min(won, lost), won + lost, 0.5)))


def average(estimates: Iterable[Estimate]) -> Estimate:
    """The mean of independent estimates, each of the same weight.

    The interval is made of theirs: the square root of the sum of the squared distances
    to each side (MOVER: Zou and Donner, 2008).
    """
    value_B, low_B, high_B = np.array(list(estimates)).T
    value, count = float(value_B.mean()), len(value_B)
    below, above = np.linalg.norm(value_B - low_B), np.linalg.norm(high_B - value_B)
    return Estimate(value, value - float(below) / count, value + float(above) / count)
