import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limr_jax.algorithms import bots, mopps

CORRECT_PG = jnp.array([[1, 1, 1, 0], [0, 0, 1, 1]], bool)
VALID_PG = jnp.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)
IDS_P = jnp.array([2, 0])


def updated(state, correct_PG=CORRECT_PG, valid_PG=VALID_PG, rho=0.25):
    update = functools.partial(bots.update, decay=0.5, prior=1.0, rho=rho)
    return jax.jit(update)(state, IDS_P, correct_PG, valid_PG)


def test_update_by_hand():
    """Expected of the batch 1/2, and it did (3/4 + 1/3) / 2 = 13/24."""
    state = mopps.State(jnp.array([1.0, 3.0, 1.0, 1.0]), jnp.array([1.0, 1.0, 1.0, 1]))
    state = updated(state)
    # Drawn: .5 · 1 + .5 + right, and + wrong.
    np.testing.assert_allclose(state.alpha_N[IDS_P], [4, 2])
    np.testing.assert_allclose(state.beta_N[IDS_P], [2, 3])
    # Not drawn: half of the counts, and of the prior, and .25 · 3.5 rollouts at the
    # old mean, moved by (13/24 − 1/2) / (1/2) = 1/12 of the way to 1.
    rate_N = np.array([3 / 4 + 1 / 4 / 12, 1 / 2 + 1 / 2 / 12])
    faded_N = np.array([2.0, 1.0])
    np.testing.assert_allclose(
        state.alpha_N[jnp.array([1, 3])], faded_N + 0.875 * rate_N, rtol=1e-6
    )
    np.testing.assert_allclose(
        state.beta_N[jnp.array([1, 3])], 1 + 0.875 * (1 - rate_N), rtol=1e-6
    )


def test_a_batch_that_did_worse_lowers_the_others():
    """All wrong where a half was expected: every other problem, too, is all wrong."""
    state = updated(mopps.init(4), correct_PG=CORRECT_PG & False)
    np.testing.assert_allclose(state.alpha_N[jnp.array([1, 3])], [1, 1])
    np.testing.assert_allclose(state.beta_N[jnp.array([1, 3])], [1.875, 1.875])
    mean_N = jnp.array([0.0, 0.2, 1.0])
    for before, now, want_N in [
        (0.5, 0.25, [0, 0.1, 0.5]),
        (0.5, 0.75, [0.5, 0.6, 1]),
        (0.5, 0.5, [0, 0.2, 1]),
        (0.0, 0.0, [0, 0.2, 1]),
        (1.0, 1.0, [0, 0.2, 1]),
        (0.5, 1.0, [1, 1, 1]),
    ]:
        got_N = bots.expected(mean_N, jnp.float32(before), jnp.float32(now))
        np.testing.assert_allclose(got_N, want_N, atol=1e-6)


def test_mopps_is_its_case_without_such_evidence():
    """At ρ = 0 every bit; with it what was drawn is MoPPS's still."""
    state = other = mopps.init(6)
    rng = np.random.default_rng(0)
    for _ in range(5):
        ids_P = jnp.asarray(rng.permutation(6)[:3])
        correct_PG, valid_PG = rng.random((2, 3, 4)) < 0.6
        given = (ids_P, jnp.asarray(correct_PG), jnp.asarray(valid_PG))
        both = {"decay": 0.9, "prior": 1.0}
        with_evidence = bots.update(state, *given, **both, rho=0.1)
        other = mopps.update(other, *given, **both)
        state = bots.update(state, *given, **both, rho=0.0)
        jax.tree.map(np.testing.assert_array_equal, state, other)
        seen_P = valid_PG.any(axis=1)
        for new, old in zip(with_evidence, other, strict=True):
            np.testing.assert_array_equal(new[ids_P][seen_P], old[ids_P][seen_P])


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_without_a_valid_rollout_nothing_changes(rho):
    state = updated(mopps.init(4))
    same = updated(state, valid_PG=VALID_PG & False, rho=rho)
    jax.tree.map(np.testing.assert_array_equal, same, state)
