"""Predicting a problem's state by its dynamics: DPS (arXiv:2603.10887).

A hidden Markov model a problem: its state is none right (0), between (1) or all right
(2), and a visit shows it as it is. α are the counts of a Dirichlet distribution over
each column of the transition matrix, P = α / Σ_rows α, P[i, j] = P(next is i | now j).

    draw the problems with the largest π[1]
    visited, o seen   ξ = P[o, :] ∘ μ / Σ,       the soft count of where it came from
                      α ← λ α + (1 − λ) α_0,     then ξ is added to row o
                      μ ← e_o;   π ← P e_o
    not visited       α ← λ α + (1 − λ) α_0;     μ ← π;   π ← P π

μ is what is believed of the state at the step that ends, π of the one that comes.
α_0 = 1, λ = .7, π = 1/3 at first; both as in the released scripts for mathematics. As μ
of a problem visited at the step before is e_j, ξ is then 1 at (o, j).

Departures: equal chances, as all are at first, are taken in random order, where the
released code goes by index; its candidates, 32 batches a step at random, are all N.
Judged on raw correctness, among valid rollouts; a group with fewer than two of them
shows no state, and counts as not visited.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class State(NamedTuple):
    """The hidden Markov model of each of N problems, over three states."""

    counts_N33: jax.Array  # α, fp32: to (rows), from (columns)
    now_N3: jax.Array  # μ, fp32: belief about the step that has ended
    next_N3: jax.Array  # π, fp32: belief about the step that comes


def init(problems: int, *, prior: float = 1.0) -> State:
    """The state before the first visit: every state and every change is as likely."""
    third_N3 = jnp.full((problems, 3), 1 / 3, jnp.float32)
    counts_N33 = jnp.full((problems, 3, 3), prior, jnp.float32)
    return State(counts_N33, third_N3, third_N3)


def choose(
    state: State,
    key: jax.Array,
    *,
    prompts: int,
    drawn_N: jax.Array | None = None,
) -> jax.Array:
    """ids_P of the P = `prompts` problems likeliest to be between (arXiv:2603.10887).

    The key breaks ties. drawn_N: bool, problems that come last, for this step has them
    already; None: no problem does.
    """
    chance_N = state.next_N3[:, 1]
    if drawn_N is not None:
        chance_N = jnp.where(drawn_N, -1.0, chance_N)
    tie_N = jax.random.uniform(key, chance_N.shape)
    return jnp.lexsort((tie_N, -chance_N))[:prompts]


def update(
    state: State,
    ids_P: jax.Array,
    correct_PG: jax.Array,
    valid_PG: jax.Array,
    *,
    decay: float,
    prior: float,
) -> State:
    """The state after the rollouts of a step, of all N problems (arXiv:2603.10887).

    ids_P: the problems drawn, all different. correct_PG and valid_PG: bool. `decay` is
    λ, `prior` is α_0.
    """
    visited_P = jnp.sum(valid_PG, axis=1) >= 2  # one rollout alone is never between
    some_P = jnp.any(valid_PG & correct_PG, axis=1)
    all_P = jnp.all(correct_PG | ~valid_PG, axis=1)
    seen_P3 = jax.nn.one_hot(some_P.astype(jnp.int32) + all_P, 3)
    problems = state.now_N3.shape[0]
    visited_N = jnp.zeros(problems, bool).at[ids_P].set(visited_P)
    # Without a visit the belief is what was predicted.
    now_N3 = state.next_N3.at[ids_P].set(
        jnp.where(visited_P[:, None], seen_P3, state.next_N3[ids_P])
    )
    change_N33 = now_N3[:, :, None] * state.now_N3[:, None, :]
    change_N33 = change_N33 * transitions(state.counts_N33)
    change_N33 = change_N33 / jnp.sum(change_N33, axis=(1, 2), keepdims=True)
    counts_N33 = decay * state.counts_N33 + (1 - decay) * prior
    counts_N33 = counts_N33 + jnp.where(visited_N[:, None, None], change_N33, 0.0)
    next_N3 = jnp.einsum("nij,nj->ni", transitions(counts_N33), now_N3)
    return State(counts_N33, now_N3, next_N3)


def transitions(counts_N33: jax.Array) -> jax.Array:
    """The expected transition matrix of each problem; each column sums to 1."""
    return counts_N33 / jnp.sum(counts_N33, axis=1, keepdims=True)
