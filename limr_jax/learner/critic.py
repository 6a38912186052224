"""The critic of PPO: the policy's architecture with a value head.

With LoRA it is its own adapters and the head, beside the base that the policy has.

V_t is the value of what stands before response token t, read off the hidden state that
token t is predicted from.
"""

import jax
import jax.numpy as jnp

from limr_jax.learner import packing
from limr_jax.learner.logprobs import response_hidden
from limr_jax.models.config import ComputeConfig


def init_params(policy_params, *, width: int) -> dict:
    """The critic's first parameters: the policy's, with a value head of zeros.

    policy_params: what is learned of the policy, with LoRA the adapters alone. width:
    D, of the model. The copy lacks the policy's output head. Every value is 0 before
    the first update, so the advantage n tokens before the end is (γλ)ⁿ of the reward:
    at γ = 1 and λ = .95, .006 of it a hundred tokens before.
    """
    body = {name: x for name, x in policy_params.items() if name != "head"}
    # Updates donate their state, so policy and critic must not share a buffer.
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
    compute: ComputeConfig,
):
    """The critic's value of what stands before each predicted token, fp32 [B, T].

    params: of the critic, with a value head (and LoRA's base). The other arguments are
    as for `logprobs.response_logprob`. Values are in units of the reward.
    """
    # fp32: GAE takes differences of values, which bf16 would round away.
    hidden_BTD = response_hidden(
        params,
        tokens_BS,
        position_BS,
        segment_BS=segment_BS,
        layout=layout,
        response_length=response_length,
        compute=compute,
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
    compute: ComputeConfig,
):
    """The values of `response_values`, of rollouts that are packed: fp32 [B, T].

    They are 0 at padding. Rows of the same `problem_B` have the same prompt;
    `micro_batch_rows` packed rows are read at a time (0: all).
    """

    def packed_values(tokens_RW, position_RW, segment_RW, layout):
        return response_values(
            params,
            tokens_RW,
            position_RW,
            segment_BS=segment_RW,
            layout=layout,
            response_length=response_length,
            compute=compute,
        )

    return packing.over_rows(
        packed_values,
        tokens_BS,
        position_BS,
        problem_B=problem_B,
        response_length=response_length,
        responses=row_responses,
        size=micro_batch_rows,
    )
