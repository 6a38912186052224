"""Every problem once an epoch; draws by weights that were given."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from tiny_policy import QUICK

from limr_jax.samplers.interface import epochs
from limr_jax.samplers.uniform import uniform
from limr_jax.samplers.weighted import weighted

UNLIKELY = 1e-3  # of a p-value; keys are fixed, so a test passes always or never
jit = functools.partial(jax.jit, compiler_options=QUICK)


@functools.partial(jit, static_argnums=(0, 1, 2))
def uniform_draws(problems, prompts, steps, seed):
    """ids [steps, P] of a uniform sampler, and the epoch that it reports."""
    key = jax.random.key(seed)
    sampler = uniform(problems=problems, prompts=prompts, key=key)

    def step(state, step):
        state, ids_P = sampler.sample(state, jax.random.fold_in(key, step))
        reward_PG = jnp.zeros((prompts, 1))
        state = sampler.update(state, ids_P, reward_PG, reward_PG == 0)
        return state, (ids_P, sampler.report(state, ids_P)["epoch"])

    return jax.lax.scan(step, sampler.init(), jnp.arange(steps))[1]


# P divides N; does not; is nearly N, so that all batches straddle; is N; is 1.
@pytest.mark.parametrize(
    "problems, prompts", [(12, 4), (13, 5), (9, 8), (7, 7), (5, 1)]
)
def test_uniform_draws_every_problem_once_an_epoch(problems, prompts):
    epochs = 24
    steps = epochs * problems // prompts
    orders = []
    for seed in range(12):
        ids, epoch = uniform_draws(problems, prompts, steps, seed)
        assert ids.dtype == jnp.int32
        for ids_P in np.asarray(ids):
            assert len(set(ids_P)) == prompts  # never twice in a step
        drawn = np.asarray(ids).ravel()
        whole = drawn[: len(drawn) // problems * problems].reshape(-1, problems)
        np.testing.assert_array_equal(
            np.sort(whole), np.tile(np.arange(problems), (len(whole), 1))
        )
        np.testing.assert_allclose(
            epoch, np.arange(1, steps + 1) * prompts / problems, rtol=1e-6
        )
        orders += [tuple(order) for order in whole]
    # New orders in each epoch and for each seed: N! of them are enough from 7 on.
    if problems >= 7:
        assert len(set(orders)) > 0.9 * len(orders)


def test_uniform_orders_are_random():
    """Any problem at any place of any epoch's order, where no batch straddles."""
    place = np.zeros((6, 6), int)
    for seed in range(60):
        ids, _ = uniform_draws(6, 3, 40, seed)
        for order in np.asarray(ids).reshape(-1, 6):
            place[np.arange(6), order] += 1
    assert scipy.stats.chisquare(place.ravel(), ddof=10).pvalue > UNLIKELY


def test_given_weights_are_drawn_by_from_the_first_step():
    """Three of ten problems weigh 1, the rest .01: most draws are of the three."""
    weight_N = jnp.where(jnp.arange(10) < 3, 1.0, 0.01)
    sampler = weighted(weight_N=weight_N, prompts=3)
    state, drawn = sampler.init(), []
    for step in range(200):
        state, ids_P = sampler.sample(state, jax.random.key(step))
        assert len(set(np.asarray(ids_P).tolist())) == 3
        state = sampler.update(state, ids_P, jnp.ones((3, 2)), jnp.ones((3, 2), bool))
        drawn.append(np.asarray(ids_P))
    report = sampler.report(state, ids_P)
    assert float(report["epoch"]) == 50.0  # ceil(10 / 3) steps each
    np.testing.assert_allclose(report["lim/kept_share"], 0.3, rtol=1e-6)
    np.testing.assert_array_equal(state.weight_N, weight_N)
    kept = np.mean(np.concatenate(drawn) < 3)
    assert 0.9 < kept < 1.0


def test_whole_epochs_are_whole_numbers():
    """In a jit 41 / 41 is 0.99999994, whose floor is another epoch."""
    for epoch_steps in (1, 3, 41, 47, 61, 1000):
        of = jax.jit(functools.partial(epochs, epoch_steps=epoch_steps))
        whole = [float(of(jnp.int32(k * epoch_steps))) for k in range(9)]
        assert whole == [*range(9)]
        assert 0 < float(of(jnp.int32(1))) <= 1
        before = float(of(jnp.int32(8 * epoch_steps - 1)))
        assert 7 <= before < 8 and before == pytest.approx(8 - 1 / epoch_steps)
