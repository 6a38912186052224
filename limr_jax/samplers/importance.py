"""Selection without another objective: a drawn problem's loss weighs 1 / (N · q_i).

The mean over a step's P problems is then an unbiased estimate of the mean over all N,
whatever draws them: selection changes the variance of the gradient and no longer what
is climbed. q_i is the chance of problem i at one of the P places of a step.

Of a draw without replacement by weights w (Gumbel top-k, arXiv:1903.06059) no q_i has a
closed form, but that given the noise of all others has one. With κ the largest of the
values log w_j + Gumbel_j that are not drawn, i is drawn with probability

    P · q_i = 1 − exp(−w_i e^{−κ})

and E[1{i is drawn} / q_i | the others] = P for each i, so the weights 1 / (N q_i) are
exact; it is the estimator of priority sampling, which Kool et al. use with Gumbel top-k
(arXiv:2002.06043). The draws are those that there are without the weights.
"""

import jax
import jax.numpy as jnp

from limr_jax.samplers.weighted import log_weight


def of_draw_by_weight(weight_N: jax.Array, key, prompts: int) -> jax.Array:
    """1 / (N q_i) of the problems that `draw_by_weight` draws, fp32 weight_P.

    The arguments are those of that call. Each weight_N is to be above 0: else there are
    problems that no draw speaks for.
    """
    noise_N = jax.random.gumbel(key, weight_N.shape)
    return of_noise(weight_N, noise_N, prompts)


def of_noise(weight_N: jax.Array, noise_N: jax.Array, prompts: int) -> jax.Array:
    """`of_draw_by_weight`, with the Gumbel noise of the draw in its key's place."""
    problems = weight_N.shape[0]
    if prompts == problems:
        return uniformly(prompts)  # all are drawn, each with certainty
    log_weight_N = log_weight(weight_N)
    value_N = log_weight_N + noise_N
    value_X, id_X = jax.lax.top_k(value_N, prompts + 1)  # X = P + 1
    # expm1, since the chance of a problem that weighs next to nothing is tiny.
    drawn_P = -jnp.expm1(-jnp.exp(log_weight_N[id_X[:-1]] - value_X[-1]))
    return prompts / (problems * drawn_P)


def uniformly(prompts: int) -> jax.Array:
    """1 / (N q_i) where all problems are drawn as often: ones, fp32 weight_P."""
    return jnp.ones((prompts,), jnp.float32)


def metrics(weight_P: jax.Array) -> dict:
    """How much the weights of a step vary: the largest, and (Σ w)² / (P Σ w²)."""
    effective = jnp.sum(weight_P) ** 2 / (len(weight_P) * jnp.sum(weight_P**2))
    return {
        "importance/weight_mean": jnp.mean(weight_P),  # 1 in expectation
        "importance/weight_max": jnp.max(weight_P),
        "importance/effective_share": effective,
    }
