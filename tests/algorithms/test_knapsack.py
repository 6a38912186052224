import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limr_jax.algorithms import dr_grpo, grpo, knapsack, maxrl, rloo


def value(count, p):
    """V(N, p) in float64."""
    return (1 - p**count - (1 - p) ** count) * p * (1 - p) ** 2


def best(rates, budget, least, most):
    """The largest sum of values, by trying all counts."""
    every = itertools.product(range(least, most + 1), repeat=len(rates))
    return max(
        sum(map(value, counts, rates)) for counts in every if sum(counts) == budget
    )


def test_value_by_hand():
    np.testing.assert_allclose(knapsack.value(2, jnp.float32(0.5)), 0.5 / 8)
    np.testing.assert_allclose(knapsack.value(1, jnp.float32(0.3)), 0, atol=1e-7)


def test_increment_is_the_difference_and_falls():
    p_X = jnp.linspace(0, 1, 21)[None]
    n_N1 = jnp.arange(2, 40)[:, None]
    got_NX = knapsack.increment(n_N1, p_X)
    want_NX = value(np.arange(3, 41)[:, None], np.float64(p_X)) - value(
        np.arange(2, 40)[:, None], np.float64(p_X)
    )
    np.testing.assert_allclose(got_NX, want_NX, atol=1e-7)
    assert np.all(np.diff(got_NX, axis=0) <= 0)


def test_allocate_by_hand():
    """The vector of ../shared/algorithms.md, section 8."""
    rate_P = jnp.array([0.1, 0.3, 0.5, 0.9])
    count_P = knapsack.allocate(rate_P, budget=24, least=2, most=16)
    np.testing.assert_array_equal(count_P, [8, 8, 6, 2])
    total = sum(map(value, count_P.tolist(), [0.1, 0.3, 0.5, 0.9]))
    np.testing.assert_allclose(total, 0.307362, atol=5e-7)


@pytest.mark.parametrize("seed", range(12))
def test_no_other_counts_are_worth_more(seed):
    random = np.random.default_rng(seed)
    rates = random.beta(*random.uniform(0.3, 2, 2), size=4)
    least, most = 2, 7
    budget = int(random.integers(4 * least, 4 * most + 1))
    count_P = knapsack.allocate(
        jnp.float32(rates), budget=budget, least=least, most=most
    )
    assert count_P.sum() == budget
    assert count_P.min() >= least and count_P.max() <= most
    got = sum(map(value, count_P.tolist(), rates))
    np.testing.assert_allclose(got, best(rates, budget, least, most), atol=1e-7)


@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_problems_alike_get_as_many(rate):
    """Also where nothing is to be gained by any: what is over goes round."""
    count_P = knapsack.allocate(jnp.full(5, rate), budget=17, least=2, most=16)
    np.testing.assert_array_equal(np.sort(count_P), [3, 3, 3, 4, 4])


@pytest.mark.parametrize("budget", [8, 64])
def test_at_the_bounds(budget):
    rate_P = jnp.array([0.0, 0.2, 0.7, 1.0])
    count_P = knapsack.allocate(rate_P, budget=budget, least=2, most=16)
    np.testing.assert_array_equal(count_P, np.full(4, budget // 4))


def test_in_a_jit_for_many():
    """A batch of a real run: sorted, not tried."""
    rate_P = jax.random.uniform(jax.random.key(0), (512,))
    allocate = jax.jit(knapsack.allocate, static_argnames=("budget", "least", "most"))
    count_P = allocate(rate_P, budget=4096, least=2, most=32)
    assert count_P.sum() == 4096
    # What the least gain taken and the largest not taken are worth.
    taken = knapsack.increment(count_P - 1, rate_P)[count_P > 2]
    left = knapsack.increment(count_P, rate_P)[count_P < 32]
    assert taken.min() >= left.max()


ESTIMATORS = {
    "RLOO": rloo.advantage,
    "Dr. GRPO": dr_grpo.advantage,
    "GRPO": grpo.advantage,
    "MaxRL": maxrl.advantage,
}


@functools.cache
def advantages(estimator, right, count):
    reward_1G = jnp.float32(np.arange(count) < right)[None]
    return np.asarray(estimator(reward_1G, jnp.ones((1, count), bool))[0])


def gradient_share(estimator, count, p):
    """The expected gradient of `count` rollouts over p (1 − p), every outcome."""
    share = 0.0
    for right in range(count + 1):
        chance = math.comb(count, right) * p**right * (1 - p) ** (count - right)
        moves = advantages(estimator, right, count) * ((np.arange(count) < right) - p)
        share += chance * moves.mean()
    return share / (p * (1 - p))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_bias_that_the_docstring_states(name):
    """Every number of its row."""
    lines = knapsack.__doc__.splitlines()
    (row,) = (x for x in lines if x.startswith(f"    {name} "))
    stated = [float(x) for x in row.replace(name, "").split()]
    shares = [
        gradient_share(ESTIMATORS[name], count, p)
        for count in (2, 8, 32)
        for p in (0.1, 0.5, 0.9)
    ]
    np.testing.assert_allclose(stated, shares, atol=0.0061)
