import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.algorithms import greso

VALID = jnp.ones((4, 2), bool)
RIGHT, WRONG, MIXED = [True, True], [False, False], [True, False]


def visit(state, ids, groups, valid_PG=VALID):
    return jax.jit(greso.update)(state, jnp.array(ids), jnp.array(groups), valid_PG)


def test_streaks_and_kinds_by_hand():
    state = greso.init(5)
    np.testing.assert_array_equal(greso.skip_probability(state), np.zeros(5))
    state = visit(state, [0, 1, 2, 3], [RIGHT, WRONG, MIXED, WRONG])
    np.testing.assert_array_equal(state.streak_N, [1, 1, 0, 1, 0])
    state = visit(state, [3, 0, 2, 4], [MIXED, RIGHT, MIXED, MIXED])
    np.testing.assert_array_equal(state.streak_N, [2, 1, 0, 0, 0])
    np.testing.assert_array_equal(state.all_right_N[:2], [True, False])


def test_skip_probability_by_hand():
    state = greso.State(
        jnp.array([0, 1, 2, 3, 30]),
        jnp.array([True, True, False, False, True]),
        jnp.float32(0.5),
        jnp.float32(0.2),
    )
    got_N = jax.jit(greso.skip_probability)(state)
    np.testing.assert_allclose(got_N, [0, 0.5, 0.96, 0.99, 0.99], atol=1e-6)


def test_exploration_follows_the_shares():
    # right 1/4 > 1/12: down; wrong 0 ≤ 1/6: up
    state = visit(greso.init(4), [0, 1, 2, 3], [RIGHT, MIXED, MIXED, MIXED])
    np.testing.assert_allclose(state.explore_right, 0.49)
    np.testing.assert_allclose(state.explore_wrong, 0.51)
    for _ in range(60):
        state = visit(state, [0, 1, 2, 3], [RIGHT, MIXED, MIXED, MIXED])
    np.testing.assert_allclose(state.explore_right, 0.05)
    np.testing.assert_allclose(state.explore_wrong, 0.95)


def test_invalid_rollouts_are_left_out():
    valid_PG = jnp.array([[1, 1], [1, 0], [0, 1], [0, 0]], bool)
    groups = [MIXED, RIGHT, WRONG, RIGHT]
    state = visit(greso.init(4), [0, 1, 2, 3], groups, valid_PG)
    np.testing.assert_array_equal(state.streak_N, np.zeros(4))
    np.testing.assert_allclose(state.explore_right, 0.51)  # one visit, mixed
    unseen = visit(state, [0, 1, 2, 3], groups, valid_PG & False)
    jax.tree.map(np.testing.assert_array_equal, unseen, state)
    valid_PG = jnp.array([[1, 1, 0]] * 2, bool)
    groups = [[True, True, False], [False, False, True]]
    state = visit(greso.init(2), [0, 1], groups, valid_PG)
    np.testing.assert_array_equal(state.streak_N, [1, 1])
    np.testing.assert_array_equal(state.all_right_N, [True, False])
