"""How many rollouts each problem gets: a knapsack of groups' values (arXiv:2509.25849).

    V(N, p) = (1 − p^N − (1 − p)^N) · p (1 − p)²
    maximise Σ_i V(N_i, p_i)   with   Σ_i N_i = B   and   least ≤ N_i ≤ most

The first factor is the chance that N rollouts of pass rate p have both outcomes, the
second the paper's estimate of what an update then gains. For N ≥ 2 the increments

    V(N + 1, p) − V(N, p) = (p^N (1 − p) + (1 − p)^N p) · p (1 − p)²

fall in N, so that taking the largest ones, one after another, is exact: one sort of a
table [P, most − least], and no dynamic programme. It has to begin at N = 2, since
V(1) = 0: the increment from 1 to 2 is no smaller than the one before it.

What it does to the gradient. N_i is fixed before the rollouts, so each problem's own
mean gradient is what it is with N_i rollouts whatever the others got. Over the true one
of a policy of one parameter, p (1 − p), it is by enumeration

    N                2                 8                 32
    p           .1   .5   .9      .1   .5   .9      .1   .5   .9
    RLOO      1.00 1.00 1.00    1.00 1.00 1.00    1.00 1.00 1.00
    Dr. GRPO   .50  .50  .50     .87  .87  .87     .97  .97  .97
    GRPO       .71  .71  .71    2.18 1.74 2.18    3.09 1.94 3.09
    MaxRL     1.00 1.00 1.00    5.22 1.98 1.11    9.62 2.00 1.11

So RLOO alone is unbiased; where N differs, the other estimators weigh problems by it.
And a loss that is a mean over rollouts weighs a problem by N_i: it climbs Σ N_i J_i and
not Σ J_i. `allocation.knapsack.weigh=problems` divides by N_i. REINFORCE++ whitens over
all rollouts of the step, in which a problem counts N_i times: of two problems of p = .2
and .7 with 4 rollouts each it gives 1.83 and 1.85, with 6 and 2 rollouts 1.90 and 1.98
(tests/samplers/test_allocation.py).

Departures: the paper solves by dynamic programming and takes the pass rate of the last
visit; here a rate is the mean of a decayed Beta posterior, which is never 0 or 1, so
that no rule for problems never solved is needed. Increments that tie are taken at the
least N first.
"""

import jax
import jax.numpy as jnp


def value(count: jax.Array | float, pass_rate: jax.Array) -> jax.Array:
    """V(N, p): what N rollouts of a problem of pass rate p are worth (2509.25849).

    count: N, at least 1. pass_rate: p, fp32, 0 to 1. Of any shapes that go together.
    """
    both = 1 - pass_rate**count - (1 - pass_rate) ** count
    return both * pass_rate * (1 - pass_rate) ** 2


def increment(count: jax.Array | float, pass_rate: jax.Array) -> jax.Array:
    """V(N + 1, p) − V(N, p), without the difference of two numbers near 1."""
    p, q = pass_rate, 1 - pass_rate
    return (p**count * q + q**count * p) * p * q**2


def allocate(
    pass_rate_P: jax.Array, *, budget: int, least: int, most: int
) -> jax.Array:
    """Rollouts of each problem, int32 count_P, whose sum is `budget` (2509.25849).

    pass_rate_P: fp32, 0 to 1. least, most: of each problem; 2 ≤ least, and P · least ≤
    budget ≤ P · most. Exact: no other counts have a larger sum of `value`.
    """
    problems = pass_rate_P.shape[0]
    from_X = jnp.arange(least, most)  # X = most − least increments a problem
    gain_XP = increment(from_X[:, None], pass_rate_P[None])
    # The least N first where gains tie, as they do at pass rates of 0 and 1: what is
    # over then goes round all problems, and not to the first.
    order = jnp.argsort(-gain_XP.reshape(-1), stable=True)
    problem = order[: budget - problems * least] % problems
    return jnp.full(problems, least, jnp.int32).at[problem].add(1)
