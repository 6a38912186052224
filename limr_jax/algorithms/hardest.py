"""What the base model fails most: hard examples (arXiv:2508.14094).

    score_i = 1 − (right responses of k) / k        of the base model, before training

The problems with the largest scores are trained on; the paper keeps a tenth of them. No
probe run is needed, only k responses a problem: hence it is the subset that LIM's must
beat.

Departure: right responses are counted among valid ones; a problem without any has no
score. (Of the many problems that no response solves, all score 1: which of them are
kept is the caller's to say.)
"""

import jax
import jax.numpy as jnp


def score(correct_NE: jax.Array, seen_NE: jax.Array) -> jax.Array:
    """The share of each problem's wrong responses, fp32 [N] (arXiv:2508.14094).

    correct_NE: correctness of each of its responses, which stand in the place of
    epochs. seen_NE: bool, False where a response was not valid. A problem without a
    valid response has −inf.
    """
    count_N = jnp.sum(seen_NE, axis=1)
    wrong_N = jnp.sum(jnp.where(seen_NE, 1 - correct_NE, 0), axis=1)
    return jnp.where(count_N > 0, wrong_N / jnp.maximum(count_N, 1), -jnp.inf)
