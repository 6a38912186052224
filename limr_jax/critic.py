"""The critic of PPO: the policy's architecture with a value head.

V_t is the value of what stands before response token t, read off the hidden state that
token t is predicted from.
"""

import jax
import jax.numpy as jnp

from limr_jax import model
from limr_jax.chunks import by_rows


def init_params(policy_params) -> dict:
    """A copy of the policy's parameters, its head replaced by a value head of zeros.

    So every value is 0 before the first update, and advantages are the rewards.
    """
    body = {name: x for name, x in policy_params.items() if name != "head"}
    width = body["embedder"]["embedding"].shape[1]
    copied = jax.tree.map(jnp.copy, body)
    return copied | {"value_head": {"kernel": jnp.zeros((width,), jnp.float32)}}


def response_values(
    params,
    tokens_BS,
    position_BS,
    *,
    response_length: int,
    config: model.ModelConfig,
    dtype,
    remat: bool = False,
):
    """Values before each of the last T tokens of each row, fp32 [B, T]."""
    hidden_BSD = model.forward(
        params, tokens_BS, position_BS, config=config, dtype=dtype, remat=remat
    )
    hidden_BTD = hidden_BSD[:, -response_length - 1 : -1].astype(jnp.float32)
    return jnp.einsum("btd,d->bt", hidden_BTD, params["value_head"]["kernel"])


def values(params, tokens_BS, position_BS, *, micro_batch_rows: int, **options):
    """`response_values` in micro-batches: fp32 [B, T]."""

    def some(tokens_BS, position_BS):
        return response_values(params, tokens_BS, position_BS, **options)

    return by_rows(some, tokens_BS, position_BS, size=micro_batch_rows)
