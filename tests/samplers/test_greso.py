"""GRESO behind the interface: a walk that skips, and is never short."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from tiny_policy import QUICK

from limr_jax.algorithms import greso as greso_math
from limr_jax.samplers import greso as greso_sampler

UNLIKELY = 1e-3  # of a p-value; keys are fixed, so a test passes always or never
KEY = jax.random.key(0)
jit = functools.partial(jax.jit, compiler_options=QUICK)


def greso(problems, prompts, **options):
    given = {"floor": 0.01, "target_right": 1 / 12, "target_wrong": 1 / 6, "step": 0.01}
    return greso_sampler.greso(
        problems=problems, prompts=prompts, key=KEY, **(given | options)
    )


def flat(sampler, streak_N):
    """A state whose problems have been all wrong so many times."""
    state = sampler.init()
    learned = state.learned._replace(streak_N=jnp.array(streak_N, jnp.int32))
    return dataclasses.replace(state, learned=learned)


@pytest.mark.parametrize("problems, prompts", [(12, 4), (13, 5), (9, 8), (7, 7)])
def test_without_streaks_every_problem_comes_once_an_epoch(problems, prompts):
    sampler = greso(problems, prompts)
    sample, state, drawn = jit(sampler.sample), sampler.init(), []
    for step in range(2 * problems):
        state, ids_P = sample(state, jax.random.fold_in(KEY, step))
        assert len(set(ids_P.tolist())) == prompts
        assert state.walked == prompts
        drawn += ids_P.tolist()
    whole = np.reshape(drawn, (-1, problems))
    np.testing.assert_array_equal(
        np.sort(whole), np.tile(np.arange(problems), (len(whole), 1))
    )
    assert int(state.order.epoch) == 2 * prompts and int(state.order.position) == 0


@pytest.mark.slow
def test_a_walk_by_hand():
    """Problems that are never ready are passed; the last batch goes on in the next."""
    order = greso(8, 3).init().order
    first = [6, 2, 0, 5, 1, 7, 3, 4]
    order = dataclasses.replace(
        order, order_2N=order.order_2N.at[0].set(jnp.array(first))
    )
    ready_N = jnp.array([True, False, True, True, False, True, True, False])
    order, ids_P, walked = greso_sampler._walk(order, ready_N, KEY, 3)
    assert ids_P.tolist() == [6, 2, 0] and walked == 3
    order, ids_P, walked = greso_sampler._walk(order, ready_N, KEY, 3)
    # 5, then 3 (1 and 7 are passed), then 4 is passed, and the next order begins.
    assert ids_P[:2].tolist() == [5, 3]
    assert int(ids_P[2]) in (0, 2, 6) and order.epoch == 1
    this = order.order_2N[0].tolist()
    assert sorted(this) == list(range(8))
    assert order.position == this.index(int(ids_P[2])) + 1
    assert walked == 5 + order.position
    # Who was drawn as the last of an epoch does not come again in the same step.
    assert all(this.index(problem) >= int(order.position) for problem in (5, 3))


@pytest.mark.slow
def test_skips_have_their_probability():
    """p = .5 and a streak of 1: each of those is passed at every second turn."""
    sampler = greso(40, 4)
    state = flat(sampler, [1] * 20 + [0] * 20)
    keys = jax.random.split(KEY, 2000)
    ids = jit(
        jax.vmap(
            lambda key: greso_sampler._ready(
                greso_math.skip_probability(state.learned), key, 4, None
            )
        )
    )(keys)
    assert np.all(ids[:, 20:])
    skipped = int(np.sum(~np.asarray(ids[:, :20])))
    assert scipy.stats.binomtest(skipped, 40_000, 0.5).pvalue > UNLIKELY
    walked, drawn_P = sampler.sample(state, KEY)
    report = sampler.report(walked, drawn_P)
    np.testing.assert_allclose(
        report["greso/skipped_share"], 1 - 4 / int(walked.walked), rtol=1e-6
    )
    assert report["greso/flat_share"] == 0.5


def test_a_batch_is_never_short():
    """All but one problem would be skipped almost surely; yet five are drawn."""
    sampler = greso(6, 5, floor=0.0)
    state = flat(sampler, [30] * 5 + [0])
    sample = jit(sampler.sample)
    for step in range(30):
        state, ids_P = sample(state, jax.random.fold_in(KEY, step))
        assert len(set(ids_P.tolist())) == 5 and 5 in ids_P.tolist()


def test_it_learns_from_valid_rollouts_alone():
    sampler = greso(5, 4)
    correct_PG = jnp.array([[1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0]], jnp.float32)
    valid_PG = jnp.array([[1, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 1]], bool)
    ids_P = jnp.array([4, 0, 1, 2])
    state = jit(sampler.update)(sampler.init(), ids_P, correct_PG, valid_PG)
    # All right, all wrong, mixed, and one that cannot vary: one valid rollout.
    np.testing.assert_array_equal(state.learned.streak_N, [1, 0, 0, 0, 1])
    np.testing.assert_array_equal(
        state.learned.all_right_N, [False, False, False, False, True]
    )
    # One of three visits each: 1/3 > 1/12 and 1/3 > 1/6.
    np.testing.assert_allclose(state.learned.explore_right, 0.49)
    np.testing.assert_allclose(state.learned.explore_wrong, 0.49)
