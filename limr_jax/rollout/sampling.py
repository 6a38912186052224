"""How tokens are drawn, and the log-probability that they have."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from limr_jax import prng
from limr_jax.models import cpu
from limr_jax.multihost.arrays import put
from limr_jax.sharding import REPLICATED


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; every field is traced, so no value compiles anew.

    A filter that is None is off, and is not compiled: in each of a generation's loops
    they are a seventh of what XLA:CPU has to compile for the benchmark.
    """

    temperature: jax.Array | float = 1.0  # 0 is argmax
    top_p: jax.Array | float | None = None  # 1 is off
    top_k: jax.Array | int | None = None  # 0 is off
    min_p: jax.Array | float | None = None  # 0 is off


def scaled_logits(logits_XV: jax.Array, temperature) -> jax.Array:
    """Logits over the temperature; at 0, where drawing is argmax, the logits."""
    return logits_XV / jnp.where(temperature > 0, temperature, 1.0)


def filter_logits(scaled_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """-inf for the tokens that top-k, then top-p, then min-p leave out.

    Each filter keeps the most probable token, and whatever ties with the last that it
    keeps.
    """
    top_k, top_p, min_p = sampling.top_k, sampling.top_p, sampling.min_p
    kept_BV = scaled_BV

    def lighter_than(most, weight_BV):
        rank_BV = _ordered(scaled_BV)
        stays_BV = rank_BV >= _least(rank_BV, weight_BV, most)
        return jnp.where(stays_BV, kept_BV, -jnp.inf)

    if top_k is not None:
        # Of weight 1 each, those with fewer than k tokens above them stay.
        most = jnp.where(top_k > 0, top_k, jnp.inf)
        kept_BV = lighter_than(most, jnp.ones_like(scaled_BV))
    if top_p is not None:
        # At 1 all stay: in fp32 the mass above a tail token may round to 1.
        most = jnp.where(top_p < 1, top_p, jnp.inf)
        kept_BV = lighter_than(most, jax.nn.softmax(kept_BV, axis=-1))
    if min_p is not None:
        best_B1 = jnp.max(scaled_BV, axis=-1, keepdims=True)
        # p ≥ min_p · p_best, in logs: the normaliser cancels.
        stays_BV = scaled_BV >= best_B1 + jnp.log(min_p)
        kept_BV = jnp.where(stays_BV, kept_BV, -jnp.inf)
    return kept_BV


def _ordered(x: jax.Array) -> jax.Array:
    """fp32 as int32 of the same order."""
    x = jnp.where(x == 0, 0.0, x)  # -0.0 is no less than 0.0
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    # A negative float's bits grow as it falls: flipped, all but the sign.
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _least(rank_BV, weight_BV, bound):
    """The least rank above which all weigh less than `bound`; at most the highest.

    By halving the interval: to sort a whole vocabulary and add it up in order takes
    XLA's TPU compiler minutes.
    """

    def halve(_, ends):
        low_B1, high_B1 = ends
        # (low + high) / 2, rounded down, without the overflow of their sum.
        middle_B1 = (low_B1 >> 1) + (high_B1 >> 1) + (low_B1 & high_B1 & 1)
        above_BV = jnp.where(rank_BV > middle_B1, weight_BV, 0.0)
        light_B1 = jnp.sum(above_BV, axis=-1, keepdims=True) < bound
        return (
            jnp.where(light_B1, low_B1, middle_B1 + 1),
            jnp.where(light_B1, middle_B1, high_B1),
        )

    ends = (f(rank_BV, axis=-1, keepdims=True) for f in (jnp.min, jnp.max))
    return jax.lax.fori_loop(0, 32, halve, tuple(ends))[1]  # of at most 2³² ranks


def choose(logits_BV, key_B, position_B, sampling: Sampling):
    """Draw one token a row: (token_B, logprob_B, entropy_B).

    The log-probability is that under the full temperature-scaled distribution, before
    any filter, as the learner computes it.
    """
    scaled_BV = scaled_logits(logits_BV, sampling.temperature)
    noise_BV = prng.gumbel(key_B, position_B, logits_BV.shape[-1])
    # argmax of logits with Gumbel noise is a draw from their softmax. Without noise it
    # is the most probable token.
    noise_BV = jnp.where(sampling.temperature > 0, noise_BV, 0.0)
    token_B = cpu.argmax(filter_logits(scaled_BV, sampling) + noise_BV)
    logprob_B, entropy_B = token_logprob(scaled_BV, token_B)
    return token_B, logprob_B, entropy_B


def token_logprob(scaled_XV: jax.Array, token_X: jax.Array):
    """Log-probability of each token and entropy of its distribution, in nats."""
    log_sum_X = jax.nn.logsumexp(scaled_XV, axis=-1)
    chosen_X = jnp.take_along_axis(scaled_XV, token_X[..., None], axis=-1)[..., 0]
    # H = −Σ p log p = log Σ exp(logit) − Σ p · logit.
    probability_XV = jnp.exp(scaled_XV - log_sum_X[..., None])
    mean_X = jnp.sum(probability_XV * scaled_XV, axis=-1)
    return chosen_X - log_sum_X, log_sum_X - mean_X


def put_sampling(mesh, **values: float) -> Sampling:
    """How tokens are drawn, put on the mesh's devices, on each the same.

    values: by the names of `sampling_of`'s arguments.
    """
    everywhere = NamedSharding(mesh, REPLICATED)
    return jax.tree.map(lambda x: put(x, everywhere), sampling_of(**values))


def sampling_of(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0) -> Sampling:
    """How tokens are drawn, as NumPy scalars; a filter that is off is None.

    temperature: 0 is argmax. top_p: the mass that is kept; 1 is off. top_k: the tokens
    that are kept; 0 is off. min_p: the least share of the best token's probability; 0
    is off.
    """
    return Sampling(
        temperature=np.float32(temperature),
        top_p=np.float32(top_p) if top_p < 1 else None,
        top_k=np.int32(top_k) if top_k else None,
        min_p=np.float32(min_p) if min_p else None,
    )
