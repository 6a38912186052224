import collections
import functools
import math
from math import comb

import jax.numpy as jnp
import numpy as np
import pytest

from limr_jax.algorithms import dr_grpo, grpo, maxrl, reinforce_ada, rloo


def asked(open_P, begun_P, left, *, last, per_round=4, most=16):
    return reinforce_ada.ask(
        jnp.array(open_P, bool),
        jnp.array(begun_P, jnp.int32),
        jnp.int32(left),
        per_round=per_round,
        most=most,
        last=last,
    ).tolist()


def test_exits_by_hand():
    right_P, wrong_P = jnp.array([2, 1, 3, 0, 9]), jnp.array([2, 5, 1, 8, 0])
    balance_P = reinforce_ada.balance(right_P, wrong_P, taken=4)
    np.testing.assert_array_equal(balance_P, [1, 0, 0, 0, 0])
    # An odd number: one more of the wrong ones.
    balance_P = reinforce_ada.balance(right_P, wrong_P, taken=3)
    np.testing.assert_array_equal(balance_P, [1, 1, 0, 0, 0])
    positive_P = reinforce_ada.positive(right_P, wrong_P, taken=4)
    np.testing.assert_array_equal(positive_P, [1, 1, 1, 0, 1])


def test_ask_by_hand():
    # A whole round while the budget suffices.
    assert asked([1, 1, 0, 1], [0, 0, 0, 0], 12, last=False) == [4, 4, 0, 4]
    # Where it does not: as evenly as it can, the first get one more.
    assert asked([1, 1, 0, 1], [4, 4, 4, 4], 11, last=False) == [4, 4, 0, 3]
    # All that is left in the last round.
    assert asked([1, 1, 0, 0], [4, 4, 4, 4], 15, last=True) == [8, 7, 0, 0]
    # No more than a problem may have; what is over stays over.
    assert asked([1, 1, 0, 0], [12, 4, 4, 4], 40, last=True) == [4, 12, 0, 0]
    assert asked([1, 1, 1, 1], [16, 15, 0, 0], 3, last=True) == [0, 1, 1, 1]
    # Nobody, or nothing.
    assert asked([0, 0], [4, 4], 8, last=True) == [0, 0]
    assert asked([1, 1], [4, 4], 0, last=False) == [0, 0]


@pytest.mark.parametrize("last", [False, True])
def test_never_more_than_is_left(last):
    random = np.random.default_rng(0)
    for _ in range(50):
        begun_P = random.integers(0, 17, 6)
        left = int(random.integers(0, 60))
        count_P = np.array(asked(random.integers(0, 2, 6), begun_P, left, last=last))
        assert count_P.sum() <= left and count_P.min() >= 0
        assert np.all(begun_P + count_P <= 16)


def test_take_by_hand():
    correct_PG = jnp.array(
        [
            [1, 1, 1, 0, 0, 0],
            [1, 0, 0, 0, 0, 0],
            [1, 1, 1, 1, 1, 0],
            [0, 1, 0, 1, 0, 1],
        ],
        bool,
    )
    valid_PG = jnp.ones((4, 6), bool).at[3, 1].set(False)
    taken_PG = reinforce_ada.take(correct_PG, valid_PG, taken=4)
    want_PG = [
        [1, 1, 0, 1, 1, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 1],
        [1, 0, 1, 1, 0, 1],
    ]
    np.testing.assert_array_equal(taken_PG, want_PG)
    nothing_PG = reinforce_ada.take(correct_PG, jnp.zeros((4, 6), bool), taken=4)
    assert not nothing_PG.any()


@functools.cache
def advantage(estimator, right, wrong):
    """(of a right rollout, of a wrong one) in a group of so many of each; nan: none."""
    reward_1G = jnp.array([[1.0] * right + [0.0] * wrong])
    advantage_1G = estimator(reward_1G, jnp.ones(reward_1G.shape, bool))
    of_right, of_wrong = np.split(np.asarray(advantage_1G[0]), [right])
    return [x[0] if len(x) else math.nan for x in (of_right, of_wrong)]


@functools.cache
def taken_of(right, wrong):
    """How many of the right and the wrong ones are learned, G = 4."""
    correct_1G = jnp.arange(right + wrong)[None] < right
    taken_1G = reinforce_ada.take(correct_1G, jnp.ones(correct_1G.shape, bool), taken=4)
    return int((taken_1G & correct_1G).sum()), int((taken_1G & ~correct_1G).sum())


@functools.cache
def leaves(exit, right, wrong):
    counts = jnp.array([right]), jnp.array([wrong])
    return bool(reinforce_ada.EXITS[exit](*counts, taken=4)[0])


def ends(p, exit, per_round=4):
    """(right, wrong, chance) of each end of a problem of pass rate p, enumerated.

    exit: None for one round, else up to four.
    """
    states, rounds = {(0, 0): 1.0}, 4 if exit else 1
    for number in range(rounds):
        following = collections.Counter()
        for (right, wrong), chance in states.items():
            for k in range(per_round + 1):
                binomial = comb(per_round, k) * p**k * (1 - p) ** (per_round - k)
                following[right + k, wrong + per_round - k] += chance * binomial
        states = {}
        for (right, wrong), chance in following.items():
            if number < rounds - 1 and not leaves(exit, right, wrong):
                states[right, wrong] = chance
            else:
                yield right, wrong, chance


def gradient_share(p, estimator, exit):
    """The expected gradient of a problem over p (1 − p), the rounds enumerated.

    The mean over what is taken; ∂ log π of a rollout of reward r is r − p, where
    p = σ(θ).
    """
    share = 0.0
    for right, wrong, chance in ends(p, exit):
        of_right, of_wrong = advantage(estimator, right, wrong)
        rights, wrongs = taken_of(right, wrong)
        terms = (rights and rights * of_right * (1 - p)) - (
            wrongs and wrongs * of_wrong * p
        )
        share += chance * terms / (rights + wrongs)
    return share / (p * (1 - p))


ESTIMATORS = {
    "RLOO": rloo.advantage,
    "Dr. GRPO": dr_grpo.advantage,
    "GRPO": grpo.advantage,
    "MaxRL": maxrl.advantage,
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_bias_that_the_docstring_states(name):
    """Every number of its row."""
    (row,) = (
        x for x in reinforce_ada.__doc__.splitlines() if x.strip()[:4] == name[:4]
    )
    stated = [float(x) for x in row.replace(name, "").split()]
    shares = [
        gradient_share(p, ESTIMATORS[name], exit)
        for exit in (None, "balance", "positive")
        for p in (0.1, 0.5, 0.9)
    ]
    np.testing.assert_allclose(stated, shares, atol=0.006)


@pytest.mark.parametrize(
    ("exit", "want"),
    [
        ("balance", [0.130, 0.348, 0.500, 0.652, 0.870]),
        ("positive", [0.154, 0.343, 0.516, 0.703, 0.900]),
    ],
)
def test_the_bias_of_the_share_that_is_right(exit, want):
    got = [
        sum(chance * right / (right + wrong) for right, wrong, chance in ends(p, exit))
        for p in (0.1, 0.3, 0.5, 0.7, 0.9)
    ]
    np.testing.assert_allclose(got, want, atol=0.0006)
    (line,) = (
        x for x in reinforce_ada.__doc__.splitlines() if f"{want[0]:.3f}"[1:] in x
    )
    assert line.split() == [exit, *(f"{x:.3f}".lstrip("0") for x in want)]
