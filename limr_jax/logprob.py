"""Log-probabilities of tokens that are given; the logits are never made all at once."""

from limr_jax import model
from limr_jax.chunks import by_chunks, by_rows, chunk_size
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
    *,
    response_length: int,
    config: model.ModelConfig,
    dtype,
    remat: bool = False,
):
    """Log-probability and entropy of the last T tokens of each row, both fp32 [B, T].

    Logits are made at those T positions only, a chunk of columns at a time.
    """
    hidden_BSD = model.forward(
        params,
        tokens_BS,
        position_BS,
        segment_BS,
        config=config,
        dtype=dtype,
        remat=remat,
    )
    return logprob_of(
        params,
        hidden_BSD[:, -response_length - 1 : -1],
        tokens_BS[:, -response_length:],
        temperature,
        config=config,
        dtype=dtype,
    )


def response_logprobs(
    params,
    tokens_BS,
    position_BS,
    temperature,
    *,
    micro_batch_rows: int,
    **options,
):
    """Log-probabilities of `response_logprob`, in micro-batches: fp32 [B, T]."""

    def some(tokens_BS, position_BS):
        return response_logprob(
            params, tokens_BS, position_BS, None, temperature, **options
        )[0]

    return by_rows(some, tokens_BS, position_BS, size=micro_batch_rows)
