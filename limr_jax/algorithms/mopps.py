"""Predicting the pass rate by Thompson sampling: MoPPS (arXiv:2507.04632).

    γ̂_i ~ Beta(α_i, β_i)                       for a pool of candidates
    choose the P of the pool with the smallest |γ̂_i − γ*|,   γ* = 0.5
    α ← λ α + (1 − λ) α_0 + right;   β ← λ β + (1 − λ) β_0 + wrong      of the chosen

λ = .5, α_0 = β_0 = 1, a pool of 8P, as the released scripts have it for the countdown
task and geometry; for mathematics theirs are λ = 1, which forgets nothing, and 16P.
Departures: the pool, drawn uniformly, is the caller's; right and wrong are counted
among valid rollouts, and a problem without any is not updated. The draw of a problem
depends on the key and the problem alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class State(NamedTuple):
    """The Beta posterior of each problem's pass rate."""

    alpha_N: jax.Array  # pseudo-count of right responses, fp32
    beta_N: jax.Array  # pseudo-count of wrong responses, fp32


def init(problems: int, *, prior: float = 1.0) -> State:
    """The state before the first visit: both pseudo-counts are α_0 = β_0 = `prior`."""
    prior_N = jnp.full(problems, prior, jnp.float32)
    return State(prior_N, prior_N)


def choose(
    state: State,
    pool_X: jax.Array,
    key: jax.Array,
    *,
    prompts: int,
    target: float = 0.5,
    drawn_N: jax.Array | None = None,
) -> jax.Array:
    """ids_P of the P = `prompts` problems of a pool to draw (arXiv:2507.04632).

    Their pass rates, drawn from the posterior, are nearest to `target`. pool_X: ids of
    X ≥ P different problems. drawn_N: bool, problems that come last, for this step has
    them already; None: no problem does.
    """

    def draw(problem):
        # The key is of the problem, so that its draw is the same in whatever pool.
        a, b = state.alpha_N[problem], state.beta_N[problem]
        return jax.random.beta(jax.random.fold_in(key, problem), a, b)

    pass_rate_X = jax.vmap(draw)(pool_X)
    gap_X = jnp.abs(pass_rate_X - target)
    if drawn_N is not None:
        gap_X = jnp.where(drawn_N[pool_X], jnp.inf, gap_X)
    order_X = jnp.argsort(gap_X, stable=True)
    return pool_X[order_X[:prompts]]


def update(
    state: State,
    ids_P: jax.Array,
    correct_PG: jax.Array,
    valid_PG: jax.Array,
    *,
    decay: float = 0.5,
    prior: float = 1.0,
) -> State:
    """The state after the rollouts of a step (arXiv:2507.04632).

    ids_P: the problems drawn, all different. correct_PG and valid_PG: bool. `decay` is
    λ, `prior` is α_0 = β_0.
    """
    visited_P = jnp.any(valid_PG, axis=1)
    right_P = jnp.sum(valid_PG & correct_PG, axis=1)
    wrong_P = jnp.sum(valid_PG & ~correct_PG, axis=1)

    def posterior(old_N, count_P):
        old_P = old_N[ids_P]
        # What older policies did fades, towards the prior and not towards 0: so both
        # pseudo-counts stay above 0, as a Beta distribution's must.
        new_P = decay * old_P + (1 - decay) * prior + count_P
        return old_N.at[ids_P].set(jnp.where(visited_P, new_P, old_P))

    return State(posterior(state.alpha_N, right_P), posterior(state.beta_N, wrong_P))
