"""Thoughts and the reference answer after them: what JEPO learns (arXiv:2503.19618).

A row is the prompt, the thought as the policy wrote it up to and with its last answer
phrase, then the reference answer by its own token ids and the end token. So the border
between thought and answer is one of tokens, whatever text they make. Where the phrase
has not come by the limit it is forced: the thought is all that was written but for the
end token, and the forced tokens are read, not learned.

Departure: the end token belongs to the answer, else '1' would be as good as '12'.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from limr_jax.algorithms import jepo, rloo
from limr_jax.logprob import response_logprobs
from limr_jax.objectives import Batch, token_kl, token_weights, told
from limr_jax.rollout import Rollout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Thoughts:
    """Row b is rollout b; S = L + X columns, X = T + K + A + 1."""

    tokens_BS: jax.Array  # int32
    position_BS: jax.Array  # int32, -1 = padding
    problem_B: jax.Array  # int32: which prompt
    thought_BX: jax.Array  # bool: tokens that the policy chose
    answer_BX: jax.Array  # bool: tokens of the reference answer, its end token included
    formatted_B: jax.Array  # bool: the policy wrote the answer phrase
    whole_B: jax.Array  # bool: the response as it is, without a reference answer
    answer_B: jax.Array | None = None  # fp32: ℓ, log π of the answer after the thought


def make(
    rollout: Rollout,
    answer_PA: jax.Array,
    answer_length_P: jax.Array,
    whole_P: jax.Array,
    *,
    phrase: tuple[int, ...],
    eos_id: int,
) -> Thoughts:
    """The rows of a step; `answer_B` is left to `score`.

    whole_P: prompts whose rollouts are taken as they are, answers of the policy's own.
    """
    G = rollout.group
    answer_BA = jnp.repeat(answer_PA, G, axis=0)
    answer_length_B = jnp.repeat(answer_length_P, G)
    whole_B = jnp.repeat(whole_P, G)
    (B, T), A, K = rollout.response_BT.shape, answer_PA.shape[1], len(phrase)
    end_B, formatted_B = jepo.thought_end(
        rollout.response_BT, rollout.mask_BT, jnp.asarray(phrase, jnp.int32)
    )
    length_B = jnp.sum(rollout.mask_BT, axis=1, dtype=jnp.int32)
    unended_B = length_B - ~rollout.truncated_B  # without the end token
    end_B = jnp.where(formatted_B, end_B, unended_B)
    end_B = jnp.where(whole_B, length_B, end_B)
    forced_B = jnp.where(formatted_B | whole_B, 0, K)
    # Thought, forced phrase, answer, end token, side by side; then each row closed up.
    columns = jnp.arange(T + K + A + 1)[None]
    begin_B1 = (end_B + forced_B)[:, None]
    last_B1 = begin_B1 + answer_length_B[:, None]
    thought_BX = columns < end_B[:, None]
    forced_BX = (columns >= end_B[:, None]) & (columns < begin_B1)
    answer_BX = (columns >= begin_B1) & (columns <= last_B1) & ~whole_B[:, None]
    phrase_BK = jnp.broadcast_to(jnp.asarray(phrase, jnp.int32), (B, K))
    token_BX = jnp.full(thought_BX.shape, eos_id, jnp.int32)
    for here_BX, source_BY, first_B1 in (
        (thought_BX, rollout.response_BT, jnp.zeros_like(begin_B1)),
        (forced_BX, phrase_BK, end_B[:, None]),
        (answer_BX & (columns < last_B1), answer_BA, begin_B1),
    ):
        at_BX = jnp.clip(columns - first_B1, 0, source_BY.shape[1] - 1)
        taken_BX = jnp.take_along_axis(source_BY, at_BX, axis=1)
        token_BX = jnp.where(here_BX, taken_BX, token_BX)
    prompt_BL = jnp.repeat(rollout.prompt_PL, G, axis=0)
    position_BL = jnp.repeat(rollout.position_PL, G, axis=0)
    position_BX = position_BL[:, -1:] + 1 + columns
    position_BX = jnp.where(thought_BX | forced_BX | answer_BX, position_BX, -1)
    return Thoughts(
        tokens_BS=jnp.concatenate([prompt_BL, token_BX], axis=1),
        position_BS=jnp.concatenate([position_BL, position_BX], axis=1),
        problem_B=rollout.problem_B,
        thought_BX=thought_BX,
        answer_BX=answer_BX,
        formatted_B=formatted_B,
        whole_B=whole_B,
    )


def score(params, thoughts: Thoughts, temperature, **options) -> Thoughts:
    """The same with ℓ of each row; options as for `logprob.response_logprobs`."""
    logprob_BX = response_logprobs(
        params,
        thoughts.tokens_BS,
        thoughts.position_BS,
        temperature,
        problem_B=thoughts.problem_B,
        response_length=thoughts.thought_BX.shape[1],
        **options,
    )
    answer_B = jnp.sum(jnp.where(thoughts.answer_BX, logprob_BX, 0.0), axis=1)
    return dataclasses.replace(thoughts, answer_B=answer_B)


def _one_sample(answer_PG, formatted_PG, valid_PG, *, beta_sup: float):
    advantage_PG = jepo.one_sample_advantage(answer_PG, valid_PG)
    return advantage_PG, jnp.where(valid_PG, beta_sup, 0.0)


def _multi_sample(answer_PG, formatted_PG, valid_PG, *, beta_sup: float):
    count_P1 = jnp.sum(valid_PG, axis=1, keepdims=True)
    advantage_PG = count_P1 * jepo.multi_sample_advantage(answer_PG, valid_PG)
    return advantage_PG, beta_sup * count_P1 * jepo.answer_weight(answer_PG, valid_PG)


# (ℓ_PG, formatted_PG, valid_PG) → advantage_PG and the answers' weight_PG, of which a
# group's gradient is the mean: 1/n Σ advantage ∇log π(c|x) + weight ∇ℓ.
ESTIMATORS = {
    "practical": jepo.practical,
    "multi_sample": _multi_sample,
    "one_sample": _one_sample,
}


def jepo_batch(
    rollout: Rollout,
    reward_PG,
    valid_PG,
    scores,
    kl_coefficient,
    *,
    estimator: Callable,
    normaliser: str,
    kl_estimator: str,
    minibatches: int,
) -> tuple[Batch, dict]:
    """JEPO's batch: both gradients in one pass; rows that are `whole_B` are RLOO's.

    estimator: one of ESTIMATORS, with what it takes beside arrays.
    """
    rows: Thoughts = scores.thoughts
    shape = reward_PG.shape
    whole_PG = rows.whole_B.reshape(shape)
    advantage_PG, weight_PG = estimator(
        jax.lax.stop_gradient(rows.answer_B).reshape(shape),
        rows.formatted_B.reshape(shape),
        ~whole_PG,
    )
    right_PG = rloo.advantage(reward_PG, valid_PG)
    advantage_BX = jnp.where(whole_PG, right_PG, advantage_PG).reshape(-1, 1)
    learned_B1 = (valid_PG | ~whole_PG).reshape(-1, 1)
    thought_BX = rows.thought_BX & learned_B1
    mask_BX = thought_BX | rows.answer_BX
    wide = [(0, 0), (0, mask_BX.shape[1] - rollout.mask_BT.shape[1])]
    kl_BT = token_kl(rollout, scores.reference_BT, kl_estimator)
    reference_BX = None
    if scores.reference_BT is not None:
        reference_BX = jnp.pad(scores.reference_BT, wide)
    batch = Batch(
        tokens_BS=rows.tokens_BS,
        position_BS=rows.position_BS,
        problem_B=rows.problem_B,
        mask_BT=mask_BX,
        weight_BT=token_weights(
            mask_BX, jnp.ones_like(rows.whole_B), normaliser, minibatches
        ),
        advantage_BT=jnp.where(thought_BX, advantage_BX, 0.0),
        old_logprob_BT=jnp.pad(rollout.logprob_BT, wide),
        reference_BT=reference_BX,
        answer_BT=rows.answer_BX,
        answer_weight_BT=jnp.where(rows.answer_BX, weight_PG.reshape(-1, 1), 0.0),
    )
    return batch, _seen(rows, shape) | told(
        batch, thought_BX, jnp.pad(kl_BT, wide), kl_coefficient
    )


def _seen(rows: Thoughts, shape) -> dict:
    """Metrics: ℓ, the bound, and how often the phrase had to be forced."""
    answer_PG, valid_PG = rows.answer_B.reshape(shape), ~rows.whole_B.reshape(shape)
    jensen_P = jnp.any(valid_PG, axis=1)
    bound_P = jepo.bound(answer_PG, valid_PG)
    return {
        "jepo/bound": jnp.mean(bound_P, where=jensen_P),
        "jepo/answer_logprob": jnp.mean(answer_PG, where=valid_PG),
        "jepo/forced_share": jnp.mean(~rows.formatted_B, where=~rows.whole_B),
        "jepo/solved_share": 1 - jnp.mean(jensen_P),
    }


def jensen_loss(logprob_BX, entropy_BX, batch: Batch, *, objective: Callable, **given):
    """`objective` of the thoughts' tokens, −weight · log π of the answers' tokens."""
    loss_BX, *statistics = objective(logprob_BX, entropy_BX, batch, **given)
    answer_BX = -batch.answer_weight_BT * logprob_BX
    return jnp.where(batch.answer_BT, answer_BX, loss_BX), *statistics
