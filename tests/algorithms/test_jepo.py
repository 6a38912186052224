import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limr_jax.algorithms import jepo, rloo

NAN = float("nan")
ANSWER = jnp.array([[-1.0, -2, -4]])
ALL = jnp.ones((1, 3), bool)


def test_vector():
    np.testing.assert_allclose(jepo.bound(ANSWER, ALL), [-1.7496001], rtol=1e-6)
    np.testing.assert_allclose(
        jax.jit(jepo.multi_sample_advantage)(ANSWER, ALL),
        [[0.8166191, -0.1050402, -0.3697146]],
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        jepo.answer_weight(ANSWER, ALL), [[0.7053845, 0.2594965, 0.0351190]], rtol=1e-5
    )
    np.testing.assert_allclose(
        jepo.one_sample_advantage(ANSWER, ALL), [[2, 0.5, -2.5]], rtol=1e-6
    )


def test_large_log_probs_keep_their_digits():
    np.testing.assert_allclose(
        jepo.multi_sample_advantage(ANSWER - 2048, ALL),
        jepo.multi_sample_advantage(ANSWER, ALL),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        jepo.one_sample_advantage(ANSWER - 2048, ALL), [[2, 0.5, -2.5]], rtol=1e-6
    )


def test_one_sample_is_rloo_on_the_log_prob():
    answer_PG = -5 * jax.random.uniform(jax.random.key(0), (8, 6))
    valid_PG = jax.random.bernoulli(jax.random.key(1), 0.7, (8, 6))
    np.testing.assert_allclose(
        jepo.one_sample_advantage(answer_PG, valid_PG),
        rloo.advantage(answer_PG, valid_PG),
        atol=1e-5,
    )


def test_invalid_rollouts_are_left_out():
    answer_PG = jnp.array([[-1, NAN, -2, -4], [-3, NAN, 1, 1], [NAN] * 4])
    valid_PG = jnp.array([[1, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    near_PG = np.array([0, 2, 3])
    for function in (
        jepo.one_sample_advantage,
        jepo.multi_sample_advantage,
        jepo.answer_weight,
    ):
        got_PG = np.asarray(jax.jit(function)(answer_PG, valid_PG))
        alone_PG = jax.jit(function)(ANSWER, ALL)
        np.testing.assert_allclose(got_PG[0, near_PG], alone_PG[0], rtol=1e-6)
        assert got_PG[0, 1] == 0
        lone = float(function is jepo.answer_weight)
        np.testing.assert_array_equal(got_PG[1:], [[lone, 0, 0, 0], [0] * 4])
    np.testing.assert_allclose(
        jepo.bound(answer_PG, valid_PG), [-1.7496001, -3, -np.inf], rtol=1e-6
    )


def test_equal_log_probs_give_exactly_zero():
    answer_PG, valid_PG = jnp.full((1, 7), -3.3), jnp.ones((1, 7), bool)
    for function in (jepo.one_sample_advantage, jepo.multi_sample_advantage):
        got_PG = jax.jit(function)(answer_PG, valid_PG)
        np.testing.assert_array_equal(got_PG, np.zeros((1, 7)))


def test_the_supervised_term_is_the_bound_s_own_gradient():
    answer_PG = -5 * jax.random.uniform(jax.random.key(0), (8, 6))
    valid_PG = jax.random.bernoulli(jax.random.key(1), 0.7, (8, 6))
    gradient_PG = jax.grad(lambda x_PG: jnp.sum(jepo.bound(x_PG, valid_PG)))(answer_PG)
    np.testing.assert_allclose(
        jepo.answer_weight(answer_PG, valid_PG), gradient_PG, atol=1e-6
    )


def test_normalise_by_hand():
    raw_PG = jnp.array([[0.5, 0, -0.5], [0, 0, 0], [-10, -10, -10]])
    got_PG = jepo.normalise(raw_PG, jnp.ones((3, 3), bool), epsilon=0.5)
    np.testing.assert_allclose(got_PG, [[0.5, 0, -0.5], [0] * 3, [-1] * 3])
    got_PG = jepo.normalise(raw_PG[:1] * 9, ALL)
    np.testing.assert_allclose(got_PG, [[1, 0, -1]], atol=1e-4)


def test_normalised_rloo_by_hand():
    """A group that is bad throughout has no advantage; 1 1 1 0 has .5 .5 .5 −1."""
    good_PG = jnp.array([[0, 0, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    want_PG = [[0] * 4, [0.5, 0.5, 0.5, -1], [1, -0.5, -0.5, -0.5], [0] * 4]
    every = jnp.ones((4, 4), bool)
    for scale, rtol in ((10.0, 1e-4), (1.0, 1e-3)):
        got_PG = jax.jit(jepo.normalised_rloo)(scale * good_PG, every)
        np.testing.assert_allclose(got_PG, want_PG, rtol=rtol)
    made = jepo.practical(jnp.zeros((4, 4)), good_PG == 1, every, beta_sup=0.01)
    np.testing.assert_allclose(made.format_PG, want_PG, rtol=1e-4)
    np.testing.assert_array_equal(made.thought_PG, np.zeros((4, 4)))
    # A rollout that does not count: neither in the baseline nor in the std.
    valid_PG = jnp.array([[1, 1, 1, 0, 1]], bool)
    got_PG = jepo.normalised_rloo(jnp.array([[1.0, 1, 1, NAN, 0]]), valid_PG)
    np.testing.assert_allclose(got_PG, [[0.5, 0.5, 0.5, 0, -1]], rtol=1e-3)


def test_practical_by_hand():
    answer_PG = jnp.concatenate([ANSWER, ANSWER.at[0, 0].set(0.0), ANSWER])
    formatted_PG = jnp.array([[1, 1, 1], [0, 1, 1], [0, 0, 0]], bool)
    valid_PG = jnp.ones((3, 3), bool)
    made = jax.jit(jepo.practical)(answer_PG, formatted_PG, valid_PG, beta_sup=0.01)
    # The three A of test_vector have std 0.622749 (ddof 1); the first is clipped. Of
    # two, ℓ −2 and −4: L̂ = −2.566219, so A = 1.433781, −.566219, of std 1.414214.
    jensen_G = [1, -0.1050402 / 0.622849, -0.3697146 / 0.622849]
    want_PG = [jensen_G, [0, 1, -0.566219 / 1.414314], [0, 0, 0]]
    np.testing.assert_allclose(made.thought_PG, want_PG, rtol=1e-5)
    # −10 0 0 above the mean of the others: −10 5 5, of std 8.660.
    want_PG = [[0] * 3, [-1, 0.577344, 0.577344], [0] * 3]
    np.testing.assert_allclose(made.format_PG, want_PG, rtol=1e-5)
    softmax_G = 0.03 * np.array([0.7053845, 0.2594965, 0.0351190])
    want_PG = [softmax_G, [0, 0.03 * 0.8807971, 0.03 * 0.1192029], [0, 0, 0]]
    np.testing.assert_allclose(made.answer_PG, want_PG, rtol=1e-5)


def test_unsolved():
    reward_PG = jnp.array([[0.0, 1], [0, 0], [1, 0], [-0.5, -1]])
    valid_PG = jnp.array([[1, 1], [1, 1], [0, 1], [1, 1]], bool)
    np.testing.assert_array_equal(
        jepo.unsolved(reward_PG, valid_PG), [False, True, True, True]
    )


def test_thought_end_is_the_last_phrase_within_the_response():
    response_BT = jnp.array(
        [
            [7, 8, 1, 7, 8, 9],
            [7, 8, 1, 7, 8, 9],
            [7, 7, 8, 0, 0, 0],
            [8, 7, 1, 2, 3, 7],
        ]
    )
    mask_BT = jnp.array([[1] * 6, [1] * 4 + [0] * 2, [1] * 3 + [0] * 3, [1] * 6], bool)
    end_B, found_B = jax.jit(jepo.thought_end)(response_BT, mask_BT, jnp.array([7, 8]))
    np.testing.assert_array_equal(end_B, [5, 2, 3, 0])
    np.testing.assert_array_equal(found_B, [True, True, True, False])
    # Up to the first phrase; all that was written, where there is none.
    end_B = jax.jit(jepo.format_end)(response_BT, mask_BT, jnp.array([7, 8]))
    np.testing.assert_array_equal(end_B, [2, 2, 3, 6])
    end_B = jepo.format_end(response_BT, mask_BT, jnp.arange(7))
    np.testing.assert_array_equal(end_B, [6, 4, 3, 6])
    end_B, found_B = jepo.thought_end(response_BT, mask_BT, jnp.arange(7))
    np.testing.assert_array_equal(end_B, [0, 0, 0, 0])
    assert not np.any(found_B)


# An enumerable toy in float64: a thought is one of 3, the reference answer one of 4
# continuations; π(c) = softmax(thought_C), π(a*|c) = log_softmax(answer_CV)[c, 0].


def toy():
    rng = np.random.default_rng(0)
    return {"thought_C": rng.normal(size=3), "answer_CV": 2 * rng.normal(size=(3, 4))}


def log_probs(params):
    answer_CV = jax.nn.log_softmax(params["answer_CV"], axis=1)
    return jax.nn.log_softmax(params["thought_C"]), answer_CV[:, 0]


def groups(n):
    """Every group of n thoughts, thought_PG, in the place of prompts."""
    return jnp.array(list(itertools.product(range(3), repeat=n)))


@functools.partial(jax.jit, static_argnums=1)
def expected_bound(params, n):
    thought_C, answer_C = log_probs(params)
    thought_PG = groups(n)
    probability_P = jnp.exp(jnp.sum(thought_C[thought_PG], axis=1))
    bound_P = jepo.bound(answer_C[thought_PG], jnp.ones(thought_PG.shape, bool))
    return jnp.sum(probability_P * bound_P)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def estimated_gradient(params, n, advantage, weight):
    """The estimator's expectation: each group's gradient times its probability."""
    thought_PG = groups(n)
    valid_PG = jnp.ones(thought_PG.shape, bool)
    thought_C, answer_C = log_probs(params)
    probability_P = jnp.exp(jnp.sum(thought_C[thought_PG], axis=1))
    advantage_PG = advantage(answer_C[thought_PG], valid_PG)
    weight_PG = weight(answer_C[thought_PG], valid_PG)

    def surrogate(params):
        thought_C, answer_C = log_probs(params)
        rows_PG = (
            advantage_PG * thought_C[thought_PG] + weight_PG * answer_C[thought_PG]
        )
        return jnp.sum(probability_P * jnp.sum(rows_PG, axis=1))

    return jax.grad(surrogate)(params)


def assert_close(got, want):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), got, want
    )


@pytest.mark.parametrize("n", [2, 3, 4])
def test_multi_sample_gradient_is_that_of_the_expected_bound(n):
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, toy())
        got = estimated_gradient(
            params, n, jepo.multi_sample_advantage, jepo.answer_weight
        )
        assert got["answer_CV"].dtype == jnp.float64
        assert_close(got, jax.grad(expected_bound)(params, n))


def test_one_sample_gradient_is_that_of_the_bound_at_n_1():
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, toy())
        got = estimated_gradient(
            params,
            3,
            lambda *group: jepo.one_sample_advantage(*group) / 3,
            lambda _, valid_PG: jnp.full(valid_PG.shape, 1 / 3),
        )
        assert_close(got, jax.grad(expected_bound)(params, 1))


def test_the_bound_rises_with_n_towards_the_log_likelihood():
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, toy())
        thought_C, answer_C = log_probs(params)
        exact = np.log(np.sum(np.exp(np.asarray(thought_C + answer_C))))
        bounds = [float(expected_bound(params, n)) for n in (1, 2, 4, 8)]
        gaps = exact - np.array(bounds)
        assert np.all(np.diff(bounds) > 0)
        assert np.all(gaps > 0)
        assert gaps[3] < 0.3 * gaps[0]  # it falls as 1/n in the end
