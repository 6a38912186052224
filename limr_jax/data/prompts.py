"""Prompts as device arrays: the whole set's, and those of one step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from limr_jax.data.problems import TokenizedProblems


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """Right-padded tokens on the devices: the whole set (N rows), or a step's (P)."""

    prompt_NL: jax.Array  # int32
    prompt_length_N: jax.Array  # int32; 0 in the rows that fill up the last device
    answer_NA: jax.Array  # int32
    answer_length_N: jax.Array  # int32


def put_prompts(tokenized: TokenizedProblems, mesh: Mesh) -> Prompts:
    """The set as device arrays, its rows spread over all axes of the mesh.

    N is filled up with empty rows to a multiple of the device count. Every process
    holds the whole set on its host and puts its own devices' rows.
    """
    # One entry that names all axes: each of them cuts the first dimension, the rows.
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    fill = -len(tokenized) % mesh.size

    def spread(host):
        host = np.pad(host, [(0, fill)] + [(0, 0)] * (host.ndim - 1))
        return jax.make_array_from_callback(
            host.shape, sharding, lambda index: host[index]
        )

    return jax.tree.map(spread, host_prompts(tokenized))


def host_prompts(tokenized: TokenizedProblems) -> Prompts:
    """The set's arrays as NumPy's, before they are put on devices: N, not filled up."""
    return Prompts(
        prompt_NL=tokenized.prompt_NL,
        prompt_length_N=tokenized.prompt_length_N,
        answer_NA=tokenized.answer_NA,
        answer_length_N=tokenized.answer_length_N,
    )


def gather(prompts: Prompts, id_P: jax.Array) -> Prompts:
    """The rows of these problems (indices below N), in this order; for use in a jit.

    Each device looks up the rows that it holds, and their sum over devices is the
    result: P × L moves, and no device ever holds all N rows.
    """
    # Indices are below N, so that nothing is clipped; but the default mode compares
    # each with N, and masks what it has looked up.
    return jax.tree.map(lambda leaf: leaf.at[id_P].get(mode="clip"), prompts)


def left_pad(prompt_PL: jax.Array, length_P: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Right-padded prompts, moved to end at column L − 1.

    Returns tokens [P, L] and positions [P, L], which count from 0 at a prompt's first
    token and are −1 in the padding before it.
    """

    def one(prompt_L, length):
        L = prompt_L.shape[0]
        # Column i of L holds token i − (L − length); before its first token that is
        # below 0.
        position_L = jnp.arange(L, dtype=jnp.int32) - (L - length)
        # The padding on the right comes round to the left.
        return jnp.roll(prompt_L, L - length), jnp.maximum(position_L, -1)

    return jax.vmap(one)(prompt_PL, length_P)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """The P problems of one step, ready to be answered."""

    ids_P: jax.Array  # int32: index in the data set
    prompt_PL: jax.Array  # int32, left-padded
    position_PL: jax.Array  # int32, -1 = padding
    answer_PA: jax.Array  # int32, right-padded reference answers
    answer_length_P: jax.Array  # int32
    # fp32: tokens that answers are expected to have, 0 where nobody knows; None: held
    # out, or in a pool.
    expected_P: jax.Array | None = None
    # fp32: what their losses are multiplied by; None: by nothing (sampler.unbiased).
    weight_P: jax.Array | None = None
    # bool: which rollouts of each are to be written; None: all G of them.
    asked_PG: jax.Array | None = None


def prompt_batch(prompts: Prompts, ids_P: jax.Array) -> PromptBatch:
    """The problems of these indices (int32 [P], below N), left-padded; within a jit."""
    rows = gather(prompts, ids_P)
    prompt_PL, position_PL = left_pad(rows.prompt_NL, rows.prompt_length_N)
    return PromptBatch(
        ids_P=ids_P,
        prompt_PL=prompt_PL,
        position_PL=position_PL,
        answer_PA=rows.answer_NA,
        answer_length_P=rows.answer_length_N,
    )
