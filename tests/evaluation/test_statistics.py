"""Intervals by hand, against published examples, and how often they hold the truth."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from limr_jax.evaluation import statistics
from limr_jax.evaluation.statistics import Estimate

NAN = math.nan


def close(estimate, want, digits=6):
    np.testing.assert_allclose(estimate, want, rtol=0, atol=10.0**-digits)


# ---- over seeds ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freedom", "want"),
    [  # of a table with ten digits
        (1, 12.7062047362),
        (2, 4.3026527297),
        (4, 2.7764451052),
        (7, 2.3646242516),
        (29, 2.0452296421),
    ],
)
def test_quantiles_of_t(freedom, want):
    assert abs(statistics.t_quantile(freedom) - want) < 1e-6


def test_a_mean_over_three_seeds_by_hand():
    """s = .7 and t(2) = 4.3027: 4.3027 · .7 / √3 = 1.7389 (`dynamic`)."""
    estimate = statistics.mean(np.array([0.6, 1.3, 2.0]))
    close(estimate, (1.3, 1.3 - 1.738896, 1.3 + 1.738896))
    close(statistics.mean([2.0, NAN, 4.0]), (3, 3 - 12.706205, 3 + 12.706205))
    assert (
        statistics.mean([2.0, NAN])[0] == 2
        and np.isnan(statistics.mean([2.0, NAN])[1:]).all()
    )
    assert np.isnan(statistics.mean([NAN])).all()
    assert statistics.mean([0.25, 0.25]) == (0.25, 0.25, 0.25)


def test_the_paired_t_test_is_scipys_and_agrees_with_the_interval():
    random = np.random.default_rng(0)
    for _ in range(50):
        apart_S = random.normal(1.0, 1.0, size=random.integers(2, 7))
        p = statistics.t_test(apart_S)
        assert p == pytest.approx(stats.ttest_1samp(apart_S, 0).pvalue, rel=1e-9)
        _, low, high = statistics.mean(apart_S)
        assert (p < 0.05) == (low > 0 or high < 0)
    assert math.isnan(statistics.t_test([3.0, NAN]))
    equal = ([0.0, 0.0], [2.0, 2.0], [0.3 - 0.2, 0.2 - 0.1, 0.1])
    assert [statistics.t_test(x) for x in equal] == [1, 1, 1]


def test_holms_step_down_by_hand():
    """Of four: .01 · 4, .02 · 3, .04 · 2, .5; none falls below a smaller one's."""
    assert statistics.holm([0.01, 0.04, 0.02, 0.5]) == pytest.approx(
        [0.04, 0.08, 0.06, 0.5]
    )
    assert statistics.holm([0.03, 0.02]) == pytest.approx([0.04, 0.04])
    adjusted = statistics.holm([NAN, 0.03, 0.9, NAN])
    assert np.isnan(adjusted)[[0, 3]].all() and adjusted[1:3] == [0.06, 0.9]
    assert statistics.holm([0.7, 0.6]) == [1.0, 1.0] and statistics.holm([]) == []


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
def test_intervals_over_seeds_hold_the_truth(seeds):
    """Of accuracies of 512 problems that seeds move by 1.2 points, and of two arms."""
    random = np.random.default_rng(seeds)
    truth, other = 0.66, 0.68
    held = np.zeros(2)
    draws = 4000
    seed_RS = random.normal(0, 0.012, (draws, seeds))
    first_RS, second_RS = (
        random.binomial(512, rate + seed_RS) / 512 for rate in (truth, other)
    )
    for first_S, second_S in zip(first_RS, second_RS, strict=True):
        _, low, high = statistics.mean(first_S)
        held[0] += low <= truth <= high
        _, low, high = statistics.mean(second_S - first_S)
        held[1] += low <= other - truth <= high
    assert np.all(held / draws >= 0.93), held / draws


def test_the_difference_that_a_paired_t_test_finds():
    """By simulation: with three pairs 3.264 standard deviations, four of five times."""
    shift = statistics.resolvable(2.0, 3) / 2.0
    assert shift == pytest.approx(3.264044, abs=1e-5)
    random = np.random.default_rng(0)
    apart_RS = random.normal(shift, 1.0, size=(4000, 3))
    t_R = apart_RS.mean(1) / apart_RS.std(1, ddof=1) * math.sqrt(3)
    assert np.mean(np.abs(t_R) > 4.302653) == pytest.approx(0.8, abs=0.02)
    # Of many seeds it is the normal distribution's (1.960 + 0.842) / √n.
    many = statistics.resolvable(1.0, 1000) * math.sqrt(1000)
    assert many == pytest.approx(2.8016, abs=0.01)


# ---- over problems ---------------------------------------------------------------


def share_of(right, problems, k=1):
    """Problems of which so many are right in all k responses, the others in none."""
    part_N = np.where(np.arange(problems) < right, k, 0)
    return statistics.proportion(part_N, np.full(problems, k))


def test_wilson_by_hand():
    """z² = 3.8415: 0 of 30 up to z² / (30 + z²)."""
    close(share_of(0, 30), (0, 0, 0.113513))
    close(share_of(1, 30), (1 / 30, 0.005909, 0.166704))
    close(share_of(30, 30), (1, 1 - 0.113513, 1))
    assert share_of(0, 30).low == 0 and share_of(30, 30).high == 1
    close(share_of(15, 30), (0.5, 0.331541, 0.668459))
    # Newcombe's examples (1998, method 3): 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for right, of, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        close(share_of(right, of)[1:], (low, high), digits=4)
    # So many alike responses to each problem are one draw each.
    close(share_of(1, 30, k=8), share_of(1, 30))


def test_a_share_of_several_responses_by_hand():
    """Three problems, 4 of 4, 1 of 4, 0 of 4, and two solved, two unsolved beside."""
    value_7 = np.array([1, 0.25, 0, 1, 1, 0, 0])
    half = 1.959964 * value_7.std() / math.sqrt(7)
    estimate = statistics.proportion(np.array([4, 1, 0]), np.array([4, 4, 4]))
    close(estimate, (5 / 12, max(0, value_7.mean() - half), value_7.mean() + half))
    assert statistics.proportion([1] + [0] * 29, [8] * 30).low == 0
    assert statistics.proportion([7] + [8] * 29, [8] * 30).high == 1


def test_a_share_of_some_responses_only():
    """Those that are well formed, say: problems without one are not there."""
    close(statistics.proportion([1, 0, 1, 0], [1, 1, 1, 0]), share_of(2, 3))
    whole = statistics.proportion([3, 1, 0], [4, 2, 0])
    close(whole, statistics.proportion([3, 1], [4, 2]))
    assert whole.value == 4 / 6
    # A problem with more responses says more: (16 + 1) / (16 + 1)² · … of two.
    close(statistics.proportion([4, 0], [4, 1])[1:], statistics._wilson(0.8, 25 / 17))
    assert np.isnan(statistics.proportion([0, 0], [0, 0])).all()


def responses(random, *, mean, alike, problems, k, draws):
    """Right responses [draws, problems]; `alike`: correlation within a problem."""
    shape = (draws, problems)
    if alike == 0:
        return random.binomial(k, mean, shape)
    if alike == 1:
        return k * random.binomial(1, mean, shape)
    total = 1 / alike - 1
    return random.binomial(k, random.beta(mean * total, (1 - mean) * total, shape))


@pytest.mark.parametrize("problems", [10, 30, 200])
def test_shares_over_problems_hold_the_truth(problems):
    """In the mean .95 and more, and nowhere below .88: Wilson dips at the ends."""
    random, draws, shares = np.random.default_rng(0), 600, []
    for k, mean, alike in itertools.product(
        (1, 8, 64), (0.01, 0.05, 0.3, 0.5, 0.97), (0, 0.1, 0.5, 0.9, 1)
    ):
        if k == 1 and alike > 0:
            continue
        right_RN = responses(
            random, mean=mean, alike=alike, problems=problems, k=k, draws=draws
        )
        whole_N = np.full(problems, k)
        held = sum(
            low <= mean <= high
            for _, low, high in (statistics.proportion(x, whole_N) for x in right_RN)
        )
        shares.append(held / draws)
    assert np.mean(shares) >= 0.95 and min(shares) >= 0.88, (min(shares), shares)


def test_a_ratio_is_the_t_interval_of_a_mean_where_wholes_are_equal():
    length_N = np.array([10.0, 20.0, 60.0])
    estimate = statistics.ratio(length_N, np.full(3, 2.0))
    close(estimate, np.array(statistics.mean(length_N / 2)))
    alone = statistics.ratio([3.0], [2.0])
    assert alone.value == 1.5 and np.isnan(alone[1:]).all()
    assert np.isnan(statistics.ratio([0.0], [0.0])).all()
    # Of unequal ones by hand: value 4 / 6, rests 1/3 and −1/3 … √(2 · 2/9) / 6.
    value, low, high = statistics.ratio([1.0, 3.0], [1.0, 5.0])
    assert value == 4 / 6
    assert high - value == pytest.approx(12.706205 * math.sqrt(2 * 2 / 9) / 6, rel=1e-6)
    assert value - low == pytest.approx(high - value)


# ---- two policies on the same problems -------------------------------------------


def test_a_paired_difference_by_hand():
    """21 pairs, 1 won and 7 lost: with one more of each 2 and 8 of 23."""
    apart_N = np.repeat([1, -1, 0], [1, 7, 13])
    spread = math.sqrt((10 / 23 - (6 / 23) ** 2) / 23)
    want = (-6 / 21, -6 / 23 - 1.959964 * spread, -6 / 23 + 1.959964 * spread)
    close(statistics.paired(apart_N), want)
    # As Fagerland, Lydersen and Laake (2014) print it for these numbers.
    close(statistics.paired(apart_N)[1:], (-0.508, -0.013), digits=3)
    # Nothing differs: not known to be 0.
    close(statistics.paired(np.zeros(30)), (0, -0.086619, 0.086619))
    assert statistics.paired(np.ones(3)).high == 1


def test_mcnemars_exact_p_by_hand():
    """Of eight, one or none won, or lost: 2 · 9 / 256."""
    assert statistics.sign_test(1, 7) == statistics.sign_test(7, 1) == 18 / 256
    assert statistics.sign_test(0, 5) == 2 / 32
    assert statistics.sign_test(3, 3) == statistics.sign_test(0, 0) == 1
    assert statistics.sign_test(20, 41) == pytest.approx(
        stats.binomtest(20, 61).pvalue, rel=1e-9
    )


@pytest.mark.parametrize("problems", [10, 30, 200])
def test_paired_differences_hold_the_truth(problems):
    """Two policies that know the same problems, one of them a little better."""
    random, draws, shares = np.random.default_rng(1), 600, []
    for k, mean, alike, gain in itertools.product(
        (1, 8), (0.02, 0.3, 0.9), (0.3, 0.9), (0, 0.05)
    ):
        total = 1 / alike - 1
        shape = (draws, problems)
        first_RN = random.beta(mean * total, (1 - mean) * total, shape)
        second_RN = first_RN + gain * (1 - first_RN)
        apart_RN = random.binomial(k, second_RN) - random.binomial(k, first_RN)
        truth = gain * (1 - mean)
        held = sum(
            low <= truth <= high
            for _, low, high in (statistics.paired(x) for x in apart_RN / k)
        )
        shares.append(held / draws)
    assert np.mean(shares) >= 0.95 and min(shares) >= 0.91, (min(shares), shares)


def test_the_average_of_benchmarks_by_hand():
    """3 below and 4 below are 5 below, over two."""
    made = statistics.average([Estimate(0.5, 0.2, 0.6), Estimate(0.7, 0.3, 0.7)])
    close(made, (0.6, 0.6 - 0.25, 0.6 + 0.05))
    close(statistics.average([Estimate(0.5, 0.4, 0.7)]), (0.5, 0.4, 0.7))


def test_as_json():
    assert Estimate(0.5, NAN, math.inf).as_json() == {
        "value": 0.5,
        "low": None,
        "high": None,
    }
