"""Rollouts in rounds until a problem has said enough: Reinforce-Ada, arXiv:2510.04996.

    a problem leaves  ⇔  right ≥ ⌊G/2⌋ and wrong ≥ G − ⌊G/2⌋      "balance"
                         right ≥ 1                                 "positive"
    learned from it:     G of its rollouts, half right and half wrong where there are
                         as many, else more of the others
    baseline:            the mean (and std) of all its rollouts, the others too

What it does to the gradient. When a problem leaves depends on what came, and what is
learned is half right and half wrong whatever the pass rate p: both bias it. For a
policy of one parameter that is right with probability p = σ(θ), the expected gradient
of one problem over its true one, p (1 − p), by enumeration, in rounds of 4 up to 16
rollouts with G = 4 (tests/algorithms/test_reinforce_ada.py):

                 4 rollouts of each        "balance"            "positive"
    p             .1    .5    .9        .1    .5    .9        .1    .5    .9
    RLOO        1.00  1.00  1.00      3.01  1.21  3.01      2.36  1.06  1.00
    Dr. GRPO     .75   .75   .75      2.73  1.00  2.73      1.97   .81   .75
    GRPO        1.46  1.40  1.46      7.96  1.91  7.96      5.23  1.52  1.46
    MaxRL       2.71  1.75  1.11     23.46  2.21  3.36     14.52  1.99  1.11

So "balance" climbs the hard and the easy problems more than those between, and
"positive" the hard ones: another objective than the pass rate, and on purpose. The
share of right ones among all of a problem's rollouts is biased too, and with it what
samplers see that learn from such shares, as lim and cdas do (counts of a Beta posterior
are not: they do not ask why it stopped). Its mean, of the same rounds:

    p                 .1     .3     .5     .7     .9
    balance         .130   .348   .500   .652   .870
    positive        .154   .343   .516   .703   .900

Departures: the released code (RLHFlow/Reinforce-Ada-Tinker) gives every open problem as
many rollouts in each of so many rounds, without a budget; here a step has a budget, and
the last round's share of it goes to those still open, as evenly as it can. With
"positive" the released code learns from all right ones, up to G, before any wrong one;
here it is half of each with either exit. Of more than are learned it takes the first
that were written, as here: when a problem leaves depends on outcomes alone, so that of
each outcome the first are as good a sample as any. A rollout that could not be graded
is neither right nor wrong.
"""

import jax
import jax.numpy as jnp


def balance(right_P: jax.Array, wrong_P: jax.Array, *, taken: int) -> jax.Array:
    """Which problems have half of G = `taken` of each outcome: bool (2510.04996)."""
    half = taken // 2
    return (right_P >= half) & (wrong_P >= taken - half)


def positive(right_P: jax.Array, wrong_P: jax.Array, *, taken: int) -> jax.Array:
    """Which problems have a right rollout: bool (2510.04996, "pos").

    wrong_P and taken are not read.
    """
    return right_P >= 1


EXITS = {"balance": balance, "positive": positive}


def ask(
    open_P: jax.Array,
    begun_P: jax.Array,
    left: jax.Array | int,
    *,
    per_round: int,
    most: int,
    last: jax.Array | bool,
) -> jax.Array:
    """Rollouts of each problem in the next round, int32 count_P (arXiv:2510.04996).

    open_P: bool, problems that have not left. begun_P: int32, rollouts that each has
    had. left: int32, what is left of the step's budget. most: rollouts of a problem in
    a step. last: bool, no further round will come. The open ones get `per_round` each;
    in the last round, or where the budget does not suffice, what is left, as evenly as
    it can. What a problem may not have because of `most` stays over.
    """
    open_P &= begun_P < most
    count = jnp.maximum(jnp.sum(open_P), 1)
    share = left // count
    whole = (share >= per_round) & ~last
    share = jnp.where(whole, per_round, share)
    # One more for the first so many, until nothing is left.
    one_more = jnp.where(whole, 0, left - share * count)
    rank_P = jnp.cumsum(open_P) - 1
    count_P = jnp.where(open_P, share + (rank_P < one_more), 0)
    return jnp.minimum(count_P, most - begun_P).astype(jnp.int32)


def take(correct_PG: jax.Array, valid_PG: jax.Array, *, taken: int) -> jax.Array:
    """The rollouts to learn from, bool taken_PG: G = `taken` a problem at most.

    correct_PG, valid_PG: bool. Half are right and half wrong where there are as many,
    else more of those that there are (arXiv:2510.04996); of each the first.
    """
    right_PG, wrong_PG = valid_PG & correct_PG, valid_PG & ~correct_PG
    right_P1 = jnp.sum(right_PG, axis=1, keepdims=True)
    wrong_P1 = jnp.sum(wrong_PG, axis=1, keepdims=True)
    # As many right ones as half, or as the wrong ones leave free.
    right_P1 = jnp.minimum(right_P1, jnp.maximum(taken // 2, taken - wrong_P1))
    first_right_PG = right_PG & (jnp.cumsum(right_PG, axis=1) <= right_P1)
    first_wrong_PG = wrong_PG & (jnp.cumsum(wrong_PG, axis=1) <= taken - right_P1)
    return first_right_PG | first_wrong_PG
