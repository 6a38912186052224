"""A policy that is a table of logits, and every response that it can write.

Token 0 ends a response. The table has a row of V logits for each node of the tree of
all texts: the root is node 0, and token v leads from a node to node · V + 1 + v.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.rollout.types import Rollout

EOS = 0


def table_of(V: int, depth: int, seed: int = 0) -> np.ndarray:
    """Random logits of every node up to `depth` tokens below the root."""
    nodes = sum(V**d for d in range(depth + 1))
    return np.random.default_rng(seed).normal(size=(nodes, V))


def responses(V: int, T: int) -> list[tuple[int, ...]]:
    """Every response: ended within T tokens, or cut at the T-th."""
    thoughts = [itertools.product(range(1, V), repeat=n) for n in range(T + 1)]
    ended = [(*thought, EOS) for of in thoughts[:T] for thought in of]
    return ended + [*thoughts[T]]


def nodes_of(tokens_BY, V: int) -> jax.Array:
    """The node that each token is chosen at."""
    tokens_BY = jnp.asarray(tokens_BY)
    node_B, node_XB = jnp.zeros_like(tokens_BY[:, 0]), []
    for x in range(tokens_BY.shape[1]):
        node_XB.append(node_B)
        node_B = node_B * V + 1 + tokens_BY[:, x]
    return jnp.stack(node_XB, axis=1)


def log_prob(table, before, texts):
    """log π(text | before) of each pair, by the definition."""
    V = table.shape[1]
    rows = [(*prefix, *text) for prefix, text in zip(before, texts, strict=True)]
    width = max(map(len, rows))
    token_BY = np.array([[*row, *[EOS] * (width - len(row))] for row in rows])
    asked_BY = np.array(
        [
            [len(prefix) <= x < len(row) for x in range(width)]
            for prefix, row in zip(before, rows)
        ]
    )
    node_BY = jnp.where(asked_BY, nodes_of(token_BY, V), 0)
    logprob_BY = jax.nn.log_softmax(table)[node_BY, token_BY]
    return jnp.sum(jnp.where(asked_BY, logprob_BY, 0), axis=1)


def rollout_of(table, rows: list[tuple[int, ...]], T: int, group: int) -> Rollout:
    """These responses, `group` a prompt of one token."""
    B = len(rows)
    response_BT, mask_BT = np.zeros((B, T), np.int32), np.zeros((B, T), bool)
    for b, row in enumerate(rows):
        response_BT[b, : len(row)], mask_BT[b, : len(row)] = row, True
    node_BT = jnp.where(mask_BT, nodes_of(response_BT, table.shape[1]), 0)
    logprob_BT = jax.nn.log_softmax(jnp.asarray(table))[node_BT, response_BT]
    return Rollout(
        prompt_PL=jnp.zeros((B // group, 1), jnp.int32),
        position_PL=jnp.zeros((B // group, 1), jnp.int32),
        response_BT=jnp.asarray(response_BT),
        mask_BT=jnp.asarray(mask_BT),
        logprob_BT=jnp.where(mask_BT, logprob_BT, 0),
        entropy_BT=jnp.zeros((B, T)),
        truncated_B=jnp.array([EOS not in row for row in rows]),
        slot_steps_M=None,
        steps_M=None,
        row_steps_M=None,
    )
