"""Log-probabilities of tokens that are given; the logits are never made all at once."""

import jax.numpy as jnp

from limr_jax import model, packing
from limr_jax.chunks import by_chunks, chunk_size
from limr_jax.rollout import scaled_logits, token_logprob


def logprob_of(
    params, hidden_BTD, token_BT, temperature, *, config: model.ModelConfig, dtype
):
    """Log-probability of each token and entropy of its distribution, fp32 [B, T].

    Hidden state t is the one that token t is predicted from. Logits are divided by the
    temperature as the rollout divides them.
    """

    def some(hidden_BCD, token_BC):
        logits_BCV = model.unembed(params, hidden_BCD, config=config, dtype=dtype)
        return token_logprob(scaled_logits(logits_BCV, temperature), token_BC)

    rows, columns = token_BT.shape
    size = chunk_size(columns, rows * config.vocab_size)
    return by_chunks(some, hidden_BTD, token_BT, size=size)


def response_logprob(
    params,
    tokens_BS,
    position_BS,
    segment_BS,
    temperature,
    layout: packing.Layout | None = None,
    *,
    response_length: int,
    config: model.ModelConfig,
    dtype,
    remat: bool = False,
):
    """Log-probability and entropy of each row's T predicted tokens, both fp32 [B, T].

    They are its last T, or those that the layout of a packed row names. Logits are made
    at those T positions only, a chunk of columns at a time.
    """
    options = {"config": config, "dtype": dtype}
    hidden_BTD = response_hidden(
        params,
        *(tokens_BS, position_BS, segment_BS, layout),
        response_length=response_length,
        remat=remat,
        **options,
    )
    token_BT = layout.token_RX if layout else tokens_BS[:, -response_length:]
    return logprob_of(params, hidden_BTD, token_BT, temperature, **options)


def response_hidden(
    params,
    tokens_BS,
    position_BS,
    segment_BS=None,
    layout: packing.Layout | None = None,
    *,
    response_length: int,
    **options,
):
    """The hidden states that the tokens of `response_logprob` are predicted from."""
    branch_BS = layout.branch_RW if layout else None
    hidden_BSD = model.forward(
        params, tokens_BS, position_BS, segment_BS, branch_BS, **options
    )
    if layout is None:
        return hidden_BSD[:, -response_length - 1 : -1]
    return jnp.take_along_axis(hidden_BSD, layout.from_RX[..., None], axis=1)


def response_logprobs(
    params,
    tokens_BS,
    position_BS,
    temperature,
    *,
    problem_B,
    micro_batch_rows: int,
    row_responses: int = 1,
    response_length: int,
    **options,
):
    """Log-probabilities of `response_logprob`, packed, fp32 [B, T]; 0 at padding.

    Rows of the same `problem_B` have the same prompt.
    """

    def some(tokens_RW, position_RW, segment_RW, layout):
        return response_logprob(
            params,
            *(tokens_RW, position_RW, segment_RW, temperature, layout),
            response_length=response_length,
            **options,
        )[0]

    return packing.over_rows(
        some,
        *(tokens_BS, position_BS, problem_B),
        response_length=response_length,
        responses=row_responses,
        size=micro_batch_rows,
    )
