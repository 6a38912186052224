import functools

import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.algorithms import mopps


def test_update_by_hand():
    correct_PG = jnp.array([[1, 1, 1, 0], [0, 0, 1, 1]], bool)
    valid_PG = jnp.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)
    update = jax.jit(mopps.update)
    state = update(mopps.init(3), jnp.array([2, 0]), correct_PG, valid_PG)
    np.testing.assert_allclose(state.alpha_N, [2, 1, 4])
    np.testing.assert_allclose(state.beta_N, [3, 1, 2])
    state = update(state, jnp.array([2, 1]), correct_PG, valid_PG & False)
    np.testing.assert_allclose(state.alpha_N, [2, 1, 4])
    state = update(state, jnp.array([2, 1]), correct_PG, valid_PG)
    np.testing.assert_allclose(state.alpha_N, [2, 2, 5.5])
    np.testing.assert_allclose(state.beta_N, [3, 3, 2.5])


def test_choose_takes_what_is_surely_nearest_to_one_half():
    right_N = jnp.array([0.05, 0.5, 0.95, 0.45, 0.05, 0.55])
    state = mopps.State(1e5 * right_N, 1e5 * (1 - right_N))
    choose = jax.jit(mopps.choose, static_argnames="prompts")
    pool_X = jnp.array([5, 0, 1, 2])
    got_P = choose(state, pool_X, jax.random.key(0), prompts=2, target=0.5)
    np.testing.assert_array_equal(got_P, [1, 5])
    got_P = choose(state, pool_X, jax.random.key(0), prompts=2, target=1.0)
    np.testing.assert_array_equal(got_P, [2, 5])


def test_draws_explore_and_do_not_depend_on_the_place_in_the_pool():
    state, pool_X = mopps.init(40), jnp.arange(32)
    keys = jax.random.split(jax.random.key(1), 300)

    @jax.jit
    def draw(pool_X):
        choose = functools.partial(mopps.choose, state, pool_X, prompts=4)
        return jax.vmap(choose)(keys)

    draws, again = draw(pool_X), draw(pool_X[::-1])
    np.testing.assert_array_equal(draws, again)
    counts = np.bincount(np.ravel(draws), minlength=40)
    # 37.5 each on average, standard deviation 5.7
    assert counts[:32].min() > 10 and counts[:32].max() < 75
    assert counts[32:].sum() == 0
