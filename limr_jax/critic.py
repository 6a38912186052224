"""The critic of PPO: the policy's architecture with a value head.

V_t is the value of what stands before response token t, read off the hidden state that
token t is predicted from.
"""

import jax
import jax.numpy as jnp

from limr_jax import model, packing
from limr_jax.logprob import response_hidden


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
    segment_BS=None,
    layout: packing.Layout | None = None,
    *,
    response_length: int,
    config: model.ModelConfig,
    dtype,
    remat: bool = False,
):
    """Values before each row's T predicted tokens, fp32 [B, T]."""
    hidden_BTD = response_hidden(
        params,
        *(tokens_BS, position_BS, segment_BS, layout),
        response_length=response_length,
        config=config,
        dtype=dtype,
        remat=remat,
    ).astype(jnp.float32)
    return jnp.einsum("btd,d->bt", hidden_BTD, params["value_head"]["kernel"])


def values(
    params,
    tokens_BS,
    position_BS,
    *,
    problem_B,
    micro_batch_rows: int,
    row_responses: int = 1,
    response_length: int,
    **options,
):
    """`response_values`, packed, fp32 [B, T]; 0 at padding."""

    def some(*rows):
        return response_values(
            params, *rows, response_length=response_length, **options
        )

    return packing.over_rows(
        some,
        *(tokens_BS, position_BS, problem_B),
        response_length=response_length,
        responses=row_responses,
        size=micro_batch_rows,
    )
