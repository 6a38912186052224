"""The order in which rollouts begin: the longest first, and only those asked for.

Rollouts that end late should begin early: then little is left when no rollout is
pending, and slots stand empty for less long. A problem's answers are expected to be as
long as they were last time. Where a step asks for some rollouts of a problem only
(samplers/allocation.py), these stand before the others, which never begin.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from limr_jax.sharding import ROWS, on_each, row_shards


def remember(length_N: jax.Array, ids_P: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """Mean tokens of each problem's last answers, fp32 [N]; 0: it has none yet.

    mask_BT: the tokens of the answers to these problems, G rows each. Where a problem
    stands there twice, the mean is of both; rows without a token count for nothing.
    """
    tokens_PG = jnp.sum(mask_BT, axis=1).reshape(len(ids_P), -1)
    # Whole numbers, so that the order in which devices add them does not matter.
    nothing_N = jnp.zeros(length_N.shape, jnp.int32)
    tokens_N = nothing_N.at[ids_P].add(jnp.sum(tokens_PG, axis=1))
    answers_N = nothing_N.at[ids_P].add(jnp.sum(tokens_PG > 0, axis=1))
    mean_N = tokens_N / jnp.maximum(answers_N, 1)
    return jnp.where(answers_N > 0, mean_N, length_N)


def longest_first(expected_P: jax.Array | None, prompts):
    """The prompts in the order in which their rollouts should begin, and the way back.

    expected_P: tokens that an answer to each is expected to have, fp32; 0: not known,
    which counts as the mean of those that are. None: the prompts stay as they are.
    prompts: a pytree of arrays of P rows. Each device orders the prompts that it holds,
    the longest answer first. The way back is a function that takes a pytree of arrays
    of P · G rows, the rollouts of prompts in that order, and gives it as the prompts
    were.
    """
    if expected_P is None:
        return prompts, lambda out: out
    along = PartitionSpec(ROWS if row_shards(len(expected_P)) > 1 else None)

    def arrange(expected_X, prompts):
        # The mean is of a device's own prompts: within `on_each` there are no others.
        known_X = expected_X > 0
        mean = jnp.sum(expected_X) / jnp.maximum(jnp.sum(known_X), 1)
        order_X = jnp.argsort(-jnp.where(known_X, expected_X, mean), stable=True)
        return order_X, jax.tree.map(lambda x: x[order_X], prompts)

    def put_back(order_X, out):
        place_X = jnp.argsort(order_X)  # the inverse permutation

        def one(x):
            # [prompts, G, …]: a group moves as one.
            groups = x.reshape(len(place_X), -1, *x.shape[1:])
            return groups[place_X].reshape(x.shape)

        return jax.tree.map(one, out)

    order_P, prompts = on_each(arrange, along, along)(expected_P, prompts)
    return prompts, partial(on_each(put_back, along, along), order_P)


def asked_first(asked_B: jax.Array, rows):
    """The rollouts with those first that are asked for; their numbers; the way back.

    asked_B: bool. rows: a pytree of arrays of B rows. Each device orders the rollouts
    that it holds, otherwise as they were. The second is asked_M, int32: how many each
    of the M devices has. The way back is a function that takes a pytree of arrays of
    rows in that order, and gives it as the rows were.
    """
    along = PartitionSpec(ROWS if row_shards(len(asked_B)) > 1 else None)

    def arrange(asked_X, rows):
        order_X = jnp.argsort(~asked_X, stable=True)
        count = jnp.sum(asked_X, dtype=jnp.int32, keepdims=True)
        return order_X, count, jax.tree.map(lambda x: x[order_X], rows)

    def put_back(order_X, out):
        place_X = jnp.argsort(order_X)  # the inverse permutation
        return jax.tree.map(lambda x: x[place_X], out)

    order_B, asked_M, rows = on_each(arrange, along, along)(asked_B, rows)
    return rows, asked_M, partial(on_each(put_back, along, along), order_B)
