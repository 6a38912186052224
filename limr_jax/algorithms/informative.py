"""The chance that a group says anything: the informative weight (marin #8765).

    w_i = 1 − E[p^G] − E[(1 − p)^G],   p ~ Beta(a_i, b_i)
    E[p^G] = Π_{k<G} (a + k) / (a + b + k)
    a ← λ a + (1 − λ) + right;   b ← λ b + (1 − λ) + wrong         of the problems drawn

w is the chance that a group of G has a right and a wrong response, under what is
believed of the pass rate p. A problem never seen is Beta(1, 1); draws are by weight,
never below a floor. The source is an issue of marin's repository, not a paper
(github.com/marin-community/marin/issues/8765); the posterior is that of MoPPS
(arXiv:2507.04632).

Departures: there the weights are those of bins of problems (nineteen, by difficulty),
with a pass rate a bin, and what marin measured is of these; here each problem has its
own, of which a step's other problems say nothing. Old counts fade towards those of
Beta(1, 1), not towards 0, so that both stay above 0, and λ = .9 is a default of this
project's; right and wrong are counted among valid rollouts, and a problem without any
keeps its counts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class State(NamedTuple):
    """The decayed Beta posterior of each problem's pass rate."""

    right_N: jax.Array  # a, fp32: right responses, faded, and 1
    wrong_N: jax.Array  # b, fp32: wrong responses, faded, and 1


def init(problems: int) -> State:
    """The state before the first visit: a = b = 1, every pass rate as likely."""
    one_N = jnp.ones(problems, jnp.float32)
    return State(one_N, one_N)


def mixed_chance(a: jax.Array, b: jax.Array, *, group: int) -> jax.Array:
    """The chance that a group of G = `group` has both outcomes, fp32, 0 to 1.

    a, b: the counts of a Beta distribution of the pass rate, each above 0, of any
    shape (marin #8765). It is not that of a group at the mean pass rate, which is
    larger.
    """

    def factor(k, products):
        all_right, all_wrong = products
        both = a + b + k
        return all_right * (a + k) / both, all_wrong * (b + k) / both

    # A loop and no array [N, G]: of a million problems only a few vectors are held.
    one = jnp.ones_like(a)
    all_right, all_wrong = jax.lax.fori_loop(0, group, factor, (one, one))
    # Of a group of 1 it is 0, and rounding makes nothing negative.
    return jnp.maximum(1 - all_right - all_wrong, 0)


def weight(state: State, *, group: int, floor: float) -> jax.Array:
    """The weight of each problem in the draw, fp32 weight_N (marin #8765).

    It is `mixed_chance`, and never below `floor`, 0 to 1.
    """
    chance_N = mixed_chance(state.right_N, state.wrong_N, group=group)
    return jnp.maximum(chance_N, floor)


def update(
    state: State,
    ids_P: jax.Array,
    correct_PG: jax.Array,
    valid_PG: jax.Array,
    *,
    decay: float,
) -> State:
    """The state after the rollouts of a step (marin #8765).

    ids_P: the problems drawn, all different. correct_PG and valid_PG: bool. `decay` is
    λ: what a visit leaves of what was seen before; 1 forgets nothing.
    """
    visited_P = jnp.any(valid_PG, axis=1)

    def faded(old_N, seen_PG):
        old_P = old_N[ids_P]
        new_P = decay * old_P + (1 - decay) + jnp.sum(valid_PG & seen_PG, axis=1)
        return old_N.at[ids_P].set(jnp.where(visited_P, new_P, old_P))

    return State(faded(state.right_N, correct_PG), faded(state.wrong_N, ~correct_PG))
