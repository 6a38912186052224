"""Competence-difficulty alignment sampling: CDAS (arXiv:2505.17652).

    choose   A(x) = |C − D(x)|: the P/2 smallest A among D ≤ C, the P/2 smallest among
             D > C
    update   d = σ(C − D(x)) − s(x), with the old C and the pass rate s
             t ← t + 1;   D(x) ← ((t−1)/t) D(x) + d/t
             C ← −mean over all problems of D

The first epoch visits every problem once and does not call `choose`.

Departures: a side that runs dry is filled from the other; an odd P gives the extra one
to D ≤ C; equal distances are taken in random order. In the released code the starting
difficulty 0 counts as one observation, so that the first update has weight 1/2:
`initial_count` is 0 in the paper and 1 in the code. (It also throws step 1's results
away, loses a problem of an odd batch and knows problems by their text: not here.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class State(NamedTuple):
    """What CDAS has learned of N problems and of the policy."""

    difficulty_N: jax.Array  # D, fp32, 0 before the first visit
    visits_N: jax.Array  # t, int32, visits with a valid pass rate
    competence: jax.Array  # C, fp32


def init(problems: int) -> State:
    """The state before the first visit: every difficulty and the competence are 0."""
    return State(
        jnp.zeros(problems, jnp.float32),
        jnp.zeros(problems, jnp.int32),
        jnp.zeros((), jnp.float32),
    )


def choose(
    state: State,
    key: jax.Array,
    *,
    prompts: int,
    drawn_N: jax.Array | None = None,
) -> jax.Array:
    """ids_P of the P = `prompts` (≤ N) problems nearest in difficulty to competence C.

    Half of them are easier than it (D ≤ C), half harder: A(x) of arXiv:2505.17652. The
    key breaks ties. drawn_N: bool, problems that are on neither side, for this step has
    them already; None: no problem is.
    """
    gap_N = state.difficulty_N - state.competence
    hard_N = gap_N > 0
    if drawn_N is None:
        drawn_N = jnp.zeros_like(hard_N)
    tie_N = jax.random.uniform(key, gap_N.shape)
    # The easy side first, then the hard one, each from its nearest; then neither.
    side_N = jnp.where(drawn_N, 2, hard_N)
    order_N = jnp.lexsort((tie_N, jnp.abs(gap_N), side_N))
    easy, hard = jnp.sum(side_N == 0), jnp.sum(side_N == 1)
    half = (prompts + 1) // 2  # of an odd P the easy side has one more
    # A side with fewer problems than its half leaves the rest to the other.
    from_easy = jnp.minimum(easy, jnp.maximum(half, prompts - hard))
    place_P = jnp.arange(prompts)
    # The easy side begins at index 0 of order_N, the hard one at index `easy`.
    return order_N[jnp.where(place_P < from_easy, place_P, place_P - from_easy + easy)]


def update(
    state: State,
    ids_P: jax.Array,
    pass_rate_P: jax.Array,
    valid_P: jax.Array,
    *,
    initial_count: float,
) -> State:
    """The state after the rollouts of a step, with d, D and C of arXiv:2505.17652.

    ids_P: the problems drawn, all different. pass_rate_P: the share of their valid
    rollouts that are right, 0 to 1. valid_P: bool, False where no rollout was valid;
    such a problem keeps its difficulty. `initial_count` is what the starting difficulty
    weighs: 0 in the paper, 1 in its released code.
    """
    old_P = state.difficulty_N[ids_P]
    visits_P = state.visits_N[ids_P] + 1
    # d > 0: fewer were right than C and D foretold, so the problem is harder: D rises.
    surprise_P = jax.nn.sigmoid(state.competence - old_P) - pass_rate_P
    # The mean of all observations so far, which needs no history but their number.
    new_P = old_P + (surprise_P - old_P) / (visits_P + initial_count)
    difficulty_N = state.difficulty_N.at[ids_P].set(jnp.where(valid_P, new_P, old_P))
    visits_N = state.visits_N.at[ids_P].set(jnp.where(valid_P, visits_P, visits_P - 1))
    # The mean is over all N: a problem without a visit counts with its D = 0.
    return State(difficulty_N, visits_N, -jnp.mean(difficulty_N))
