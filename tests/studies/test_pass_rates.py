"""Pass rates from old rollouts: by hand, and against enumeration."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from limr_jax.studies import pass_rate_errors, pass_rates


def one(correct_R, log_ratio_R, used_R=None):
    """`snis` of one problem."""
    used_R = np.ones(len(correct_R), bool) if used_R is None else np.array(used_R)
    correct_NR, log_ratio_NR = np.array([correct_R], bool), np.array([log_ratio_R])
    return [
        float(x[0]) for x in pass_rates.snis(correct_NR, log_ratio_NR, used_R[None])
    ]


def test_snis_by_hand():
    rate, ess, raw, mean_weight = one([0, 1], [0.0, math.log(3)])
    assert rate == pytest.approx(3 / 4)
    assert ess == pytest.approx(4**2 / (1 + 9))
    assert (raw, mean_weight) == (1 / 2, pytest.approx(2))
    # Weights of one size are none, whatever the size.
    rate, ess, raw, _ = one([1, 0, 1, 1], [-2.0] * 4)
    assert (rate, ess, raw) == (pytest.approx(3 / 4), pytest.approx(4), 3 / 4)


def test_a_log_ratio_is_clipped_and_an_unused_rollout_does_not_count():
    far, near = one([1, 0], [300.0, 0.0]), one([1, 0], [5.0, 0.0])
    assert far == near
    assert far[0] == pytest.approx(math.e**5 / (math.e**5 + 1))
    assert one([1, 0, 0], [0.0, 1.0, 4.0], [1, 1, 0]) == one([1, 0], [0.0, 1.0])
    assert one([1, 1], [0.0, 0.0], [0, 0]) == [0.5, 0.0, 0.5, 1.0]  # never drawn


def test_snis_of_all_outcomes_is_the_pass_rate_of_today():
    """Old rollouts in the very shares that the old policy gives them."""
    old, today = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    correct = np.array([0, 1, 1])
    rollout = np.repeat(np.arange(3), (old * 10).round().astype(int))
    rate, _, raw, mean_weight = one(correct[rollout], np.log(today / old)[rollout])
    assert rate == pytest.approx(0.8)
    assert raw == pytest.approx(0.5)
    assert mean_weight == pytest.approx(1)


def small_case(**changed) -> pass_rates.Case:
    """Three problems, two a step, two rollouts each; problem 2 was drawn once."""
    fields = {
        "ids_XP": np.array([[0, 1], [1, 2], [0, 1]]),
        "correct_XPG": np.array([[[1, 1], [0, 0]], [[0, 1], [1, 1]], [[0, 1], [1, 0]]])
        > 0,
        "log_ratio_XPG": np.arange(12.0).reshape(3, 2, 2),
        "fresh_NF": np.tile([[True], [False], [True]], 16),
        "truth_NK": np.array([[1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]]) > 0,
    }
    return pass_rates.Case(**fields | changed)


def test_the_newest_visit_comes_first():
    seen = pass_rates.visits(small_case())
    np.testing.assert_array_equal(seen.seen_NV, [[1, 1, 0], [1, 1, 1], [1, 0, 0]])
    np.testing.assert_array_equal(seen.log_ratio_NVG[1], [[10, 11], [4, 5], [2, 3]])
    np.testing.assert_array_equal(seen.correct_NVG[0, :2], [[0, 1], [1, 1]])
    _, log_ratio_NR, used_NR = pass_rates.window_of(seen, 2)
    np.testing.assert_array_equal(log_ratio_NR[1], [10, 11, 4, 5])
    np.testing.assert_array_equal(used_NR[2], [1, 1, 0, 0])


def test_the_raw_mean_stands_in_below_the_least_ess():
    case = small_case(log_ratio_XPG=np.tile([0.0, 3.0], (3, 2, 1)))
    made = pass_rates.estimates(case)
    # Of two rollouts with weights 1 and e³ the ESS is 1.1.
    name = "last visit"
    np.testing.assert_allclose(made[f"SNIS, {name}"].rate_N, [0.5, 0.5, 1])
    even = small_case(log_ratio_XPG=np.zeros((3, 2, 2)))
    made = pass_rates.estimates(even)
    for part in (0, 3):  # the rate and the chance
        np.testing.assert_allclose(
            made["SNIS, all"][part], made["raw mean, all"][part], rtol=1e-12
        )


def test_the_beta_by_hand():
    right_N, wrong_N = pass_rates.beta_counts(small_case(), decay=0.5)
    # Problem 0: 1 → .5 + .5 + 2 = 3 → 1.5 + .5 + 1 = 3; wrong 1 → 1 → .5 + .5 + 1 = 2.
    np.testing.assert_allclose([right_N[0], wrong_N[0]], [3, 2])
    np.testing.assert_allclose([right_N[2], wrong_N[2]], [3, 1])
    right_N, wrong_N = pass_rates.beta_counts(small_case(), decay=0.5, fresh=4)
    np.testing.assert_allclose([right_N[0], wrong_N[0]], [1.5 + 0.5 + 4, 1.5])
    made = pass_rates.of_counts(right_N, wrong_N, group=2)
    np.testing.assert_allclose(made.rate_N[0], 6 / 7.5)


def test_intervals_by_hand():
    # Wilson of 4 of 8, and a uniform posterior.
    made = pass_rates.of_rate(np.array([0.5]), np.array([8]), group=8)
    np.testing.assert_allclose([made.low_N[0], made.high_N[0]], [0.2152, 0.7848], 1e-3)
    assert made.chance_N[0] == pytest.approx(1 - 2 / 2**8)
    made = pass_rates.of_counts(np.ones(1), np.ones(1), group=4)
    np.testing.assert_allclose([made.low_N[0], made.high_N[0]], [0.025, 0.975])
    assert made.chance_N[0] == pytest.approx(0.6)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_what_is_held_against_the_truth_has_no_bias(rate):
    """The mean over all that K samples may be, each with its chance."""
    samples, group = 10, 4
    truth_NK = np.arange(samples) < np.arange(samples + 1)[:, None]
    chance_N = binom.pmf(np.arange(samples + 1), samples, rate)
    guess_N = np.full(samples + 1, 0.3)
    error_N = pass_rate_errors.squared_error(guess_N, truth_NK)
    assert chance_N @ error_N == pytest.approx((0.3 - rate) ** 2)
    mixed_N = pass_rate_errors.mixed_chance(truth_NK, group=group)
    expected = 1 - rate**group - (1 - rate) ** group
    assert chance_N @ mixed_N == pytest.approx(expected, abs=1e-12)


def test_choice_by_hand():
    value_N, by_N = np.array([1.0, 2, 3, 4]), np.array([0.5, 0.9, 0.5, 0.1])
    chosen = [pass_rate_errors.of_chosen(value_N, by_N, x) for x in (1, 2, 3, 4)]
    # The second place is a tie of 1 and 3.
    assert chosen == pytest.approx([2, (2 + 2) / 2, 2, 2.5])
    assert pass_rate_errors.of_draw(value_N, by_N) == pytest.approx(4.2 / 2)
    assert pass_rate_errors.of_draw(value_N, np.zeros(4)) == pytest.approx(2.5)
    assert pass_rate_errors.spearman(value_N, value_N**3) == pytest.approx(1)
    assert pass_rate_errors.spearman(value_N, np.ones(4)) == 0


def test_the_tables_of_two_cases(tmp_path):
    case = small_case()
    reports = {("a", 3): pass_rate_errors.report(case)}
    reports["b", 3] = pass_rate_errors.report(
        small_case(truth_NK=~case.truth_NK, fresh_NF=~case.fresh_NF)
    )
    result = pass_rate_errors.summary(reports)
    own = result["estimates"]["raw mean, last visit"]
    bias = [r["estimates"]["raw mean, last visit"]["bias"] for r in reports.values()]
    assert own["bias"] == pytest.approx(np.mean(bias))
    assert result["estimates"][result["best_beta"]]["vs_beta"]["value"] == 0
    for name in ("ess, all", "mean_weight, last visit"):
        assert sum(x["problems"] for x in result["bins"][name]) == 6
    pass_rate_errors.write(tmp_path, result)
    page = (tmp_path / "pass_rates.md").read_text()
    assert "| SNIS, last 2 |" in page and "| ess, all: from |" in page


def test_what_an_estimate_is_worth_in_fresh_rollouts():
    error = {"SNIS, all": 0.06}
    for decay in pass_rates.DECAYS:
        for fresh in (0, *pass_rates.FRESH):
            error[pass_rates.beta_name(decay, fresh)] = 0.16 + decay - 0.01 * fresh
    of_case = {"estimates": {name: {"mse": x} for name, x in error.items()}}
    assert pass_rate_errors.worth(of_case, "SNIS, all") == pytest.approx(10)
    of_case["estimates"]["SNIS, all"]["mse"] = 0.2
    assert pass_rate_errors.worth(of_case, "SNIS, all") == 0
    of_case["estimates"]["SNIS, all"]["mse"] = -0.01
    assert pass_rate_errors.worth(of_case, "SNIS, all") is None
