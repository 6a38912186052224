"""Random numbers as a function of what they are for, never of when or where.

A draw depends on (seed, stream, step, problem index, sample g, position) and on nothing
else: not on batch position, device, wave or schedule. So the same run on one device or
eight, resumed or not, draws the same numbers.
"""

import jax
import jax.numpy as jnp

# Each purpose has a stream of its own, so that an evaluation more changes no rollout.
# The numbers are part of every run's identity: only append. Number 4 stays unused:
# there are runs that drew intervals from it, and no other draw may repeat theirs.
STREAMS = {"init": 0, "sampler": 1, "rollout": 2, "eval": 3, "minibatch": 5}


def stream_key(seed, stream: str, step=0) -> jax.Array:
    """The key of one stream at one step; `seed` and `step` may be traced."""
    # By name: some TPU images have another generator as JAX's own.
    key = jax.random.key(seed, impl="threefry2x32")
    key = jax.random.fold_in(key, STREAMS[stream])
    return jax.random.fold_in(key, step)


def rollout_keys(key: jax.Array, problem_B: jax.Array, sample_B: jax.Array):
    """A key for each rollout, [B]: a function of its problem index and its sample g."""
    fold = jax.vmap(lambda p, g: jax.random.fold_in(jax.random.fold_in(key, p), g))
    return fold(problem_B, sample_B)


def gumbel(key_B: jax.Array, position_B, size: int) -> jax.Array:
    """Standard Gumbel noise, fp32 [B, size], for one response position of each rollout.

    key_B: of `rollout_keys`. size: of the vocabulary; rounding it up changes no number
    below. position_B: the position of each rollout, or one for all of them.
    """
    position_B = jnp.broadcast_to(position_B, key_B.shape)
    at_position = jax.vmap(jax.random.fold_in)(key_B, position_B)
    return gumbel_of_bits(random_bits(jax.random.key_data(at_position), size))


def random_bits(key_B2: jax.Array, size: int) -> jax.Array:
    """32 random bits for each token id, uint32 [B, size], from 64 bits of each row.

    key_B2: uint32, the key data of each (rollout, position).

    The counter is the token id, hashed twice by a 32-bit multiply-xorshift mixer
    (constants: the low-bias search of C. Wellons, hash-prospector) under the 64 bits
    that Threefry makes. Threefry for each token id would cost more than a small
    model's layer.
    """
    x_BV = jax.lax.broadcasted_iota(jnp.uint32, (key_B2.shape[0], size), 1)
    return _mix(_mix(x_BV + key_B2[:, :1]) ^ key_B2[:, 1:])


def gumbel_of_bits(bits_X: jax.Array) -> jax.Array:
    """Standard Gumbel noise of 32 random bits (uint32) each; fp32, −2.8 to 22.9."""
    # -log1p(-u) keeps its relative precision as u → 0, where large Gumbels come from.
    # The bound keeps u off 1 after rounding to fp32.
    u_X = (bits_X.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-32)
    u_X = jnp.minimum(u_X, jnp.float32(1 - 2.0**-24))
    return -jnp.log(-jnp.log1p(-u_X))


def _mix(x):
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
