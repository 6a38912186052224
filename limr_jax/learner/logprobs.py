"""Log-probabilities of tokens that are given; the logits are never made all at once."""

import jax.numpy as jnp

from limr_jax.chunking import by_chunks, chunk_size
from limr_jax.learner import packing
from limr_jax.models import transformer
from limr_jax.models.config import ComputeConfig
from limr_jax.rollout.sampling import scaled_logits, token_logprob


def logprob_of(params, hidden_BTD, token_BT, temperature, *, compute: ComputeConfig):
    """Log-probability of each token and entropy of its distribution, fp32 [B, T], nats.

    Hidden state t is the one that token t is predicted from. Logits are divided by the
    temperature as the rollout divides them.
    """

    def chunk_logprob(hidden_BTD, token_BT):
        logits_BTV = transformer.unembed(
            params, hidden_BTD, config=compute.model, dtype=compute.dtype
        )
        return token_logprob(scaled_logits(logits_BTV, temperature), token_BT)

    # All logits at once would be V numbers a token, where a hidden state has D.
    rows, columns = token_BT.shape
    size = chunk_size(columns, rows * compute.model.vocab_size)
    return by_chunks(chunk_logprob, hidden_BTD, token_BT, size=size)


def response_logprob(
    params,
    tokens_BS,
    position_BS,
    segment_BS,
    temperature,
    layout: packing.Layout | None = None,
    *,
    response_length: int,
    compute: ComputeConfig,
):
    """Log-probability and entropy of each row's T predicted tokens, both fp32 [B, T].

    A row's predicted tokens are its last T = `response_length`, or those that the
    layout of a packed row names. Logits are made at those T positions only, a chunk of
    columns at a time. position_BS: -1 for padding. segment_BS: the text of each column,
    None where a row is one text.
    """
    hidden_BTD = response_hidden(
        params,
        tokens_BS,
        position_BS,
        segment_BS=segment_BS,
        layout=layout,
        response_length=response_length,
        compute=compute,
    )
    token_BT = layout.token_RY if layout else tokens_BS[:, -response_length:]
    return logprob_of(
        params,
        hidden_BTD,
        token_BT=token_BT,
        temperature=temperature,
        compute=compute,
    )


def response_hidden(
    params,
    tokens_BS,
    position_BS,
    segment_BS=None,
    layout: packing.Layout | None = None,
    *,
    response_length: int,
    compute: ComputeConfig,
):
    """The hidden state that each predicted token is predicted from, [B, T, D].

    The arguments, and which tokens are predicted, are as for `response_logprob`.
    """
    branch_BS = layout.branch_RW if layout else None
    hidden_BSD = transformer.forward(
        params,
        tokens_BS,
        position_BS,
        segment_BT=segment_BS,
        branch_BT=branch_BS,
        config=compute.model,
        dtype=compute.dtype,
        remat=compute.remat,
    )
    if layout is None:
        # One column earlier than the tokens: a hidden state predicts what comes next.
        return hidden_BSD[:, -response_length - 1 : -1]
    return jnp.take_along_axis(hidden_BSD, layout.from_RY[..., None], axis=1)


def response_logprobs(
    params,
    tokens_BS,
    position_BS,
    temperature,
    *,
    problem_B,
    target_BT=None,
    micro_batch_rows: int,
    row_responses: int = 1,
    response_length: int,
    compute: ComputeConfig,
):
    """The log-probabilities of `response_logprob`, of rollouts that are packed.

    They are fp32 [B, T], 0 at padding. Rows of the same `problem_B` have the same
    prompt; `micro_batch_rows` packed rows are read at a time (0: all). target_BT: the
    predicted tokens, where they are not the last T of tokens_BS. params: of one model,
    or a tuple of several models' that read each packed row one after another; then so
    many arrays are returned.
    """

    def packed_logprob(tokens_RW, position_RW, segment_RW, layout):
        def logprob_RY(params):
            return response_logprob(
                params,
                tokens_RW,
                position_RW,
                segment_BS=segment_RW,
                temperature=temperature,
                layout=layout,
                response_length=response_length,
                compute=compute,
            )[0]

        # Model by model over rows that are still at hand: packing them is done once.
        if isinstance(params, tuple):
            return tuple(logprob_RY(each) for each in params)
        return logprob_RY(params)

    return packing.over_rows(
        packed_logprob,
        tokens_BS,
        position_BS,
        problem_B=problem_B,
        target_BT=target_BT,
        response_length=response_length,
        responses=row_responses,
        size=micro_batch_rows,
    )
