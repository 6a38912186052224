import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limr_jax.algorithms import cdas

PAPER = [
    (0.0625, [-0.5, -0.25, 0, 0.5]),
    (0.0508606, [-0.5, -0.086252, -0.11719, 0.5]),
]
CODE = [
    (0.03125, [-0.25, -0.125, 0, 0.25]),
    (0.0377671, [-0.25, -0.070339, -0.080729, 0.25]),
]


@pytest.mark.parametrize(("initial_count", "want"), [(0, PAPER), (1, CODE)])
def test_vector(initial_count, want):
    update = jax.jit(cdas.update)
    steps = [(jnp.arange(4), [1, 0.75, 0.5, 0]), (jnp.array([1, 2]), [0.5, 0.75])]
    state = cdas.init(4)
    for (ids_P, pass_rate_P), (competence, difficulty_N) in zip(
        steps, want, strict=True
    ):
        valid_P = jnp.ones(len(ids_P), bool)
        state = update(
            state, ids_P, jnp.array(pass_rate_P), valid_P, initial_count=initial_count
        )
        np.testing.assert_allclose(state.competence, competence, rtol=1e-5)
        np.testing.assert_allclose(state.difficulty_N, difficulty_N, rtol=1e-4)
    np.testing.assert_array_equal(state.visits_N, [1, 2, 2, 1])


def test_an_invalid_pass_rate_changes_nothing():
    state = cdas.init(3)
    ids_P, valid_P = jnp.array([2, 0]), jnp.array([True, False])
    got = cdas.update(
        state, ids_P, jnp.array([0.25, jnp.nan]), valid_P, initial_count=0
    )
    np.testing.assert_allclose(got.difficulty_N, [0, 0, 0.25])
    np.testing.assert_array_equal(got.visits_N, [0, 0, 1])
    np.testing.assert_allclose(got.competence, -0.25 / 3, rtol=1e-6)


def ids(difficulty, competence, prompts):
    state = cdas.init(len(difficulty))._replace(
        difficulty_N=jnp.array(difficulty, jnp.float32),
        competence=jnp.float32(competence),
    )
    choose = jax.jit(cdas.choose, static_argnames="prompts")
    return sorted(choose(state, jax.random.key(0), prompts=prompts).tolist())


def test_choose_by_hand():
    difficulty = [-0.5, -0.1, 0.0, 0.1, 0.3, 0.9]
    assert ids(difficulty, 0.05, 4) == [1, 2, 3, 4]
    assert ids(difficulty, 0.05, 2) == [2, 3]
    assert ids(difficulty, 0.05, 3) == [1, 2, 3]  # odd: the extra one has D ≤ C
    assert ids(difficulty, 0.0, 1) == [2]  # D = C is on the easy side


def test_a_dry_side_is_filled_from_the_other():
    assert ids([-0.3, -0.2, -0.1, 0.4], 0, 4) == [0, 1, 2, 3]
    assert ids([-0.4, -0.3, -0.2, -0.1], 0, 3) == [1, 2, 3]
    assert ids([0.4, 0.3, 0.2, 0.1], 0, 3) == [1, 2, 3]
    assert ids([-0.1, 0.4, 0.3, 0.2, 0.1], 0, 4) == [0, 2, 3, 4]


def test_equal_distances_come_in_random_order():
    state = cdas.init(50)
    draws = jax.jit(jax.vmap(lambda key: cdas.choose(state, key, prompts=5)))(
        jax.random.split(jax.random.key(1), 400)
    )
    counts = np.bincount(np.ravel(draws), minlength=50)
    assert counts.sum() == 2000
    assert all(len(set(draw)) == 5 for draw in draws.tolist())
    # 40 each on average, standard deviation 6
    assert counts.min() > 10 and counts.max() < 80


def test_it_tends_to_the_fixed_point():
    pass_rate_P = jnp.array([0.9, 0.5, 0.1])

    def step(state, _):
        ids_P, valid_P = jnp.arange(3), jnp.ones(3, bool)
        return cdas.update(state, ids_P, pass_rate_P, valid_P, initial_count=0), None

    state, _ = jax.lax.scan(step, cdas.init(3), length=20_000)
    difficulty_N, competence = state.difficulty_N, state.competence
    np.testing.assert_allclose(
        difficulty_N, jax.nn.sigmoid(competence - difficulty_N) - pass_rate_P, atol=1e-3
    )
    np.testing.assert_allclose(competence, -np.mean(difficulty_N), atol=1e-6)
