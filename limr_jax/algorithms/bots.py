"""Evidence for problems that were not drawn: BOTS (arXiv:2510.26374).

    a ← (1 − λ) a + λ a_0 + (1 − ρ) s + ρ s̃;   b likewise with failures f, f̃
    s, f    right and wrong responses of the problems drawn: 0 for the others
    s̃ = G p̃,   f̃ = G (1 − p̃)                 p̃ the pass rate that a problem should have

For a problem drawn p̃ is its own pass rate; for the others it is interpolated, by how
the batch did beside what was expected of it. Problems are chosen as MoPPS does
(arXiv:2507.04632), which BOTS contains at ρ = 0. λ = ρ = .1.

Departures: in the paper p̃ lies between the pass rates of a weak and of a strong
reference model, which must have answered every problem before. Here no model has: with
m the posterior mean of a problem, m̄ that of the batch and r̄ what the batch did,

    p̃ = m + (1 − m)(r̄ − m̄)/(1 − m̄)     where r̄ ≥ m̄: towards all right
    p̃ = m r̄ / m̄                          else: towards all wrong

(the paper's interpolation with 0 or 1 as the other model), and the released code's
moving average of the coefficient is left out. G is the valid rollouts of a visited
problem, on average. At ρ = 0 there is no evidence for a problem that was not drawn, so
it does not fade either: that is MoPPS to the last bit, where the released code lets all
fade. A step without a valid rollout changes nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp


def expected(mean_N: jax.Array, before: jax.Array, now: jax.Array) -> jax.Array:
    """p̃ of problems that were not drawn, 0 to 1 (arXiv:2510.26374, see Departures).

    mean_N: their posterior mean pass rates. before, now: the mean pass rate of the
    batch, as it was expected and as it was.
    """
    # Both are between 0 and 1, where a coefficient has no denominator at one end.
    towards_right = (now - before) / jnp.maximum(1 - before, 1e-6)
    towards_wrong = now / jnp.maximum(before, 1e-6)
    better_N = mean_N + (1 - mean_N) * towards_right
    return jnp.clip(jnp.where(now >= before, better_N, mean_N * towards_wrong), 0, 1)


def update(
    state: Any,
    ids_P: jax.Array,
    correct_PG: jax.Array,
    valid_PG: jax.Array,
    *,
    decay: float,
    prior: float,
    rho: float,
) -> Any:
    """The state after the rollouts of a step (arXiv:2510.26374).

    state: that of mopps.py, with a and b as alpha_N and beta_N. ids_P: the problems
    drawn, all different. correct_PG and valid_PG: bool. `decay` is 1 − λ, `prior` is
    a_0 = b_0, `rho` the weight of the evidence that is no rollout's, 0 to 1.
    """
    visited_P = jnp.any(valid_PG, axis=1)
    right_P = jnp.sum(valid_PG & correct_PG, axis=1)
    wrong_P = jnp.sum(valid_PG & ~correct_PG, axis=1)
    visits = jnp.maximum(jnp.sum(visited_P), 1)
    group = jnp.sum(valid_PG) / visits
    mean_N = state.alpha_N / (state.alpha_N + state.beta_N)
    rate_P = right_P / jnp.maximum(right_P + wrong_P, 1)
    rate_N = expected(
        mean_N,
        before=jnp.sum(jnp.where(visited_P, mean_N[ids_P], 0)) / visits,
        now=jnp.sum(rate_P) / visits,
    )

    def believed(old_N, count_P, rate_N):
        # Of a problem drawn s̃ = s, so that (1 − ρ) s + ρ s̃ is s: this is MoPPS's rule.
        old_P = old_N[ids_P]
        drawn_P = decay * old_P + (1 - decay) * prior + count_P
        others_N = old_N
        # A constant of the program: without such evidence nothing fades for it.
        if rho:
            faded_N = decay * old_N + (1 - decay) * prior
            others_N = faded_N + rho * group * rate_N
            others_N = jnp.where(jnp.any(visited_P), others_N, old_N)
        # One drawn without a valid rollout is as good as not drawn.
        new_P = jnp.where(visited_P, drawn_P, others_N[ids_P])
        return others_N.at[ids_P].set(new_P)

    return state._replace(
        alpha_N=believed(state.alpha_N, right_P, rate_N),
        beta_N=believed(state.beta_N, wrong_P, 1 - rate_N),
    )
