"""Curricula: by level, and AdaRFT (arXiv:2504.05520).

    by level   from a step on, only problems of at least some level
    AdaRFT     the P problems of difficulty nearest to the target T, then
               T ← clip(T + η tanh(α (r̄ − β)), T_min, T_max)

AdaRFT's difficulties are given beforehand, of [0, 100]; r̄ is the step's mean reward;
β = .5, α = 2, η = 50, T from 0 to 100.

Departures: equal distances are taken in random order. A problem of unknown level
(below 0) is left out once the minimum holds.
"""

import jax
import jax.numpy as jnp


def level_weight(
    level_N: jax.Array, step: jax.Array, *, start: int, minimum: int
) -> jax.Array:
    """weight_N of a draw by level: 1 or 0.

    It is 1 for every problem before step `start`, and from then on 0 for problems below
    level `minimum`, those of unknown level (below 0) among them.
    """
    return jnp.where((level_N >= minimum) | (step < start), 1.0, 0.0)


def nearest(
    difficulty_N: jax.Array,
    target: jax.Array,
    key: jax.Array,
    *,
    prompts: int,
    drawn_N: jax.Array | None = None,
) -> jax.Array:
    """ids_P of the P = `prompts` (≤ N) problems nearest in difficulty to the target.

    It is AdaRFT's batch (arXiv:2504.05520). difficulty_N and target are in one unit,
    0 to 100 in the paper. The key breaks ties. drawn_N: bool, problems that come last,
    for this step has them already; None: no problem does.
    """
    # Levels are few, so many gaps are equal: by index the first would always win.
    tie_N = jax.random.uniform(key, difficulty_N.shape)
    gap_N = jnp.abs(difficulty_N - target)
    if drawn_N is not None:
        gap_N = jnp.where(drawn_N, jnp.inf, gap_N)
    return jnp.lexsort((tie_N, gap_N))[:prompts]


def adapt(
    target: jax.Array,
    mean_reward: jax.Array,
    *,
    beta: float = 0.5,
    alpha: float = 2.0,
    eta: float = 50.0,
    low: float = 0.0,
    high: float = 100.0,
) -> jax.Array:
    """AdaRFT's next target difficulty T (arXiv:2504.05520), a scalar from low to high.

    mean_reward: r̄ of this step's batch, 0 to 1. beta: the mean reward to be held.
    alpha: how sharply a deviation acts. eta: the largest move, in units of difficulty.
    """
    # Right more often than β: T rises, and the next batch is harder.
    step = eta * jnp.tanh(alpha * (mean_reward - beta))
    return jnp.clip(target + step, low, high)
