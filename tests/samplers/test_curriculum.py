"""Curricula behind the interface: who may be drawn when, and where the target goes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from tiny_policy import QUICK

from limr_jax.samplers import curriculum
from limr_jax.samplers import uniform as uniform_lib
from limr_jax.samplers.adarft import adarft

UNLIKELY = 1e-3  # of a p-value; keys are fixed, so a test passes always or never
KEY = jax.random.key(0)
jit = functools.partial(jax.jit, compiler_options=QUICK)


def test_uniform_until_the_start_then_only_the_levels_above():
    level_N = np.array([1, 2, 3, 4, 5, 4, -1, 4, 5, 1])
    options = {"problems": 10, "prompts": 4, "key": KEY}
    sampler = curriculum.by_level(**options, level_N=level_N, start=4, minimum=4)
    uniform = uniform_lib.uniform(**options)
    state, plain = sampler.init(), uniform.init()
    sample, later = jit(sampler.sample), []
    for step in range(200):
        key = jax.random.fold_in(KEY, step)
        state, ids_P = sample(state, key)
        report = sampler.report(state, ids_P)
        assert len(set(ids_P.tolist())) == 4
        if step < 4:
            plain, plain_P = uniform.sample(plain, key)
            np.testing.assert_array_equal(ids_P, plain_P)
            np.testing.assert_allclose(report["epoch"], 0.4 * (step + 1), rtol=1e-6)
        else:
            assert np.all(level_N[np.asarray(ids_P)] >= 4)
            later += ids_P.tolist()
        np.testing.assert_allclose(
            report["curriculum/eligible_share"], 1 if step < 4 else 0.5
        )
        np.testing.assert_allclose(
            report["curriculum/drawn_level"], level_N[np.asarray(ids_P)].mean()
        )
    # After 1.6 epochs of 10 problems, 196 steps of a third of an epoch each.
    np.testing.assert_allclose(report["epoch"], 1.6 + 196 / 3, rtol=1e-6)
    counts = np.bincount(later, minlength=10)[level_N >= 4]
    assert scipy.stats.chisquare(counts).pvalue > UNLIKELY


def test_the_target_follows_the_reward():
    """β .5, α 2, η 50: from 30, all right gives 30 + 50 tanh 1 = 68.08."""
    difficulty_N = np.array([10.0, 28, 33, 66, 71, 100])
    sampler = adarft(
        difficulty_N=difficulty_N, prompts=2, target=30, beta=0.5, alpha=2, eta=50
    )
    sample, update = jit(sampler.sample), jit(sampler.update)
    state, ids_P = sample(sampler.init(), KEY)
    np.testing.assert_array_equal(ids_P, [1, 2])  # 2 and 3 away
    right_PG, valid_PG = jnp.ones((2, 2)), jnp.ones((2, 2), bool)
    state = update(state, ids_P, right_PG, valid_PG)
    np.testing.assert_allclose(state.target, 30 + 50 * np.tanh(1), rtol=1e-6)
    state, ids_P = sample(state, KEY)
    np.testing.assert_array_equal(ids_P, [3, 4])
    report = jit(sampler.report)(state, ids_P)
    np.testing.assert_allclose(report["adarft/drawn_difficulty"], 68.5)
    np.testing.assert_allclose(report["adarft/target"], state.target)
    np.testing.assert_allclose(report["adarft/drawn_gap"], 2.5, rtol=1e-5)
    # Three of four are invalid, the fourth is right: a mean of 1, not 1/4.
    valid_PG = jnp.array([[True, False], [False, False]])
    wrong_PG = jnp.array([[1.0, 0.0], [0.0, jnp.nan]])
    again = update(state, ids_P, wrong_PG, valid_PG)
    np.testing.assert_allclose(again.target, 100)  # 68.08 + 38.08, clipped
    silent = update(state, ids_P, wrong_PG, valid_PG & False)
    np.testing.assert_array_equal(silent.target, state.target)
