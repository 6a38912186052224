"""Thoughts and the reference answer after them: what JEPO learns (arXiv:2503.19618).

A row is the prompt, the thought c as the policy wrote it up to and with its last answer
phrase, then the reference answer a* by its own token ids and the end token. So the
border between thought and answer is one of tokens, whatever text they make.

A response y without the phrase stays as it is, end token included, under the practical
estimator, which asks nothing of an answer after it. The other two need one: the phrase
is forced after what was written, in the end token's place where there was one. The row
then reads the phrase where `target_BY` still has the end token that the policy chose:
stopping is an action, and is learned. Forced tokens are read, never learned.

What the estimators climb, with n rollouts y_i of a prompt, f = P(the phrase is in y),
ℓ(y) = log π(a*, end | x, c), or after y (without its end token) and the forced phrase:

    one_sample     E[ℓ(y)]: exact at beta_sup = 1, but for D below
    multi_sample   E[log mean_i exp ℓ(y_i)], L̂ of n: likewise
    practical      the format part is ∇h(f), exact: h' = E over the other n − 1 of
                   (Ã^fmt with the phrase) − (Ã^fmt without), positive for 0 < f < 1.
                   The Jensen part, clipped and divided, is no function's gradient: in
                   expectation it is Σ_i Ã_i ∇log π(y_i|x) / n, but for D below

D, the survival of the last phrase: that a phrase is the last depends on what comes
after it, so c has probability π(c|x) · S(c), S(c) = P(no phrase in the rest | x, c).
The rest has no place in the row, so ∇log S is left out, as in the paper:

    D = Σ_i E[A_i ∇log S(c_i)]          (A_i / n, or Ã_i / n, as the estimator has it)

It is 0 where no phrase comes twice. Elsewhere it is no more than 9 % of the gradient of
random tables of 40 responses (tests/learner/test_jepo_exact.py). An advantage that c
alone does not decide needs no such rest: Ã^fmt is credited up to the first phrase, else
it would add another 14 to 20 % there, and the policy would learn to write the phrase
again.

Departure: the end token belongs to the answer, else '1' would be as good as '12'.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from limr_jax.algorithms import jepo, rloo
from limr_jax.learner.advantages import model_metrics, token_kl
from limr_jax.learner.batch import Batch, PackedBatch
from limr_jax.learner.logprobs import response_logprobs
from limr_jax.models.config import ComputeConfig
from limr_jax.rewards.stats import mean
from limr_jax.rollout.types import Rollout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Thoughts:
    """Row b is rollout b. S = L + Y; Y = T + A + 1, and the phrase's if forced."""

    tokens_BS: jax.Array  # int32, as they are read
    position_BS: jax.Array  # int32, -1 = padding
    problem_B: jax.Array  # int32: which prompt
    target_BY: jax.Array  # int32, as they are predicted: an end token, a phrase read
    thought_BY: jax.Array  # bool: tokens that the policy chose, end tokens included
    format_BY: jax.Array  # bool: of these the ones that decide the format
    answer_BY: jax.Array  # bool: tokens of the reference answer, its end token included
    formatted_B: jax.Array  # bool: the policy wrote the answer phrase
    answered_B: jax.Array  # bool: the row has the reference answer
    whole_B: jax.Array  # bool: the response of a prompt that is RLOO's
    answer_B: jax.Array | None = None  # fp32: ℓ, log π of the answer; 0 without one


def make_thoughts(
    rollout: Rollout,
    answer_PA: jax.Array,
    answer_length_P: jax.Array,
    whole_P: jax.Array,
    *,
    phrase: tuple[int, ...],
    eos_id: int,
    forced: bool = True,
) -> Thoughts:
    """A step's rollouts as JEPO's rows; `answer_B` is left to `score_thoughts`.

    answer_PA: int32, the reference answers' tokens, `answer_length_P` of each row.
    whole_P: bool, prompts whose rollouts are taken as they are, with the policy's own
    answers. phrase: the tokens that introduce an answer. forced: the phrase is forced
    where it is absent; else such rows are as they are.
    """
    G, X = rollout.group, len(phrase)
    T, A = rollout.response_BT.shape[1], answer_PA.shape[1]
    response_BT, mask_BT = rollout.response_BT, rollout.mask_BT
    phrase_X = jnp.asarray(phrase, jnp.int32)
    end_B, formatted_B = jepo.thought_end(response_BT, mask_BT, phrase_X)
    decided_B = jepo.format_end(response_BT, mask_BT, phrase_X)
    whole_B = jnp.repeat(whole_P, G)
    answered_B = (formatted_B | forced) & ~whole_B
    length_B = jnp.sum(mask_BT, axis=1, dtype=jnp.int32)
    unended_B = length_B - ~rollout.truncated_B  # without the end token
    # What the policy wrote is read up to here; what it chose is learned up to there.
    read_B = jnp.where(formatted_B, end_B, unended_B)
    # RLOO's rows, and those left without an answer, are read and learned whole.
    read_B = jnp.where(answered_B, read_B, length_B)
    learned_B = jnp.where(answered_B & formatted_B, end_B, length_B)
    begin_B = read_B + jnp.where(answered_B & ~formatted_B, X, 0)
    last_B = begin_B + jnp.repeat(answer_length_P, G)
    columns = jnp.arange(T + X * forced + A + 1)[None]
    read_BY = columns < read_B[:, None]
    forced_BY = (columns < begin_B[:, None]) & ~read_BY
    answer_BY = columns <= last_B[:, None]
    answer_BY &= (columns >= begin_B[:, None]) & answered_B[:, None]
    before_BY = answer_BY & (columns < last_B[:, None])  # the end token
    # The answer's end token is what stays where nothing else is put.
    token_BY = jnp.full(answer_BY.shape, eos_id, jnp.int32)
    first_B = jnp.zeros_like(read_B)
    token_BY = _put(token_BY, read_BY, source_BX=response_BT, first_B=first_B)
    token_BY = _put(token_BY, forced_BY, source_BX=phrase_X[None], first_B=read_B)
    answer_BA = jnp.repeat(answer_PA, G, axis=0)
    token_BY = _put(token_BY, before_BY, source_BX=answer_BA, first_B=begin_B)
    thought_BY = columns < learned_B[:, None]
    there_BY = read_BY | forced_BY | answer_BY
    tokens_BS, position_BS = _after_prompts(rollout, token_BY, there_BY)
    # Thoughts keep the columns of the response: only behind them is it widened.
    written_BY = jnp.pad(response_BT, [(0, 0), (0, columns.size - T)])
    return Thoughts(
        tokens_BS=tokens_BS,
        position_BS=position_BS,
        problem_B=rollout.problem_B,
        target_BY=jnp.where(thought_BY, written_BY, token_BY),
        thought_BY=thought_BY,
        format_BY=thought_BY & (columns < decided_B[:, None]),
        answer_BY=answer_BY,
        formatted_B=formatted_B,
        answered_B=answered_B,
        whole_B=whole_B,
    )


def _after_prompts(rollout: Rollout, token_BY, there_BY):
    """tokens_BS and position_BS: each row's prompt, then its tokens where there are."""
    prompt_BL = jnp.repeat(rollout.prompt_PL, rollout.group, axis=0)
    position_BL = jnp.repeat(rollout.position_PL, rollout.group, axis=0)
    position_BY = position_BL[:, -1:] + 1 + jnp.arange(token_BY.shape[1])[None]
    position_BY = jnp.where(there_BY, position_BY, -1)
    return (
        jnp.concatenate([prompt_BL, token_BY], axis=1),
        jnp.concatenate([position_BL, position_BY], axis=1),
    )


def _put(token_BY, here_BY, source_BX, first_B):
    """The tokens, where `here_BY` those of `source_BX`, whose first is at `first_B`."""
    columns = jnp.arange(token_BY.shape[1])[None]
    at_BY = jnp.clip(columns - first_B[:, None], 0, source_BX.shape[1] - 1)
    source_BY = jnp.take_along_axis(source_BX, at_BY, axis=1)
    return jnp.where(here_BY, source_BY, token_BY)


def score_thoughts(
    params,
    thoughts: Thoughts,
    temperature,
    *,
    micro_batch_rows: int,
    row_responses: int = 1,
    compute: ComputeConfig,
) -> Thoughts:
    """The thoughts with `answer_B`, ℓ of each row in nats, under these parameters.

    The last three arguments are as for `logprobs.response_logprobs`.
    """
    logprob_BY = response_logprobs(
        params,
        thoughts.tokens_BS,
        thoughts.position_BS,
        temperature=temperature,
        target_BT=thoughts.target_BY,
        problem_B=thoughts.problem_B,
        response_length=thoughts.thought_BY.shape[1],
        micro_batch_rows=micro_batch_rows,
        row_responses=row_responses,
        compute=compute,
    )
    answer_B = jnp.sum(jnp.where(thoughts.answer_BY, logprob_BY, 0.0), axis=1)
    return dataclasses.replace(thoughts, answer_B=answer_B)


def _one_sample(answer_PG, formatted_PG, valid_PG, *, beta_sup: float):
    return jepo.Coefficients(
        # The learner averages over the n rollouts: the paper's 1/n of both terms.
        thought_PG=jepo.one_sample_advantage(answer_PG, valid_PG),
        format_PG=jnp.zeros_like(answer_PG),
        answer_PG=jnp.where(valid_PG, beta_sup, 0.0),
    )


def _multi_sample(answer_PG, formatted_PG, valid_PG, *, beta_sup: float):
    count_P1 = jnp.sum(valid_PG, axis=1, keepdims=True)
    return jepo.Coefficients(
        # Sums over the group in the paper, averages in the learner: hence n times.
        thought_PG=count_P1 * jepo.multi_sample_advantage(answer_PG, valid_PG),
        format_PG=jnp.zeros_like(answer_PG),
        answer_PG=beta_sup * count_P1 * jepo.answer_weight(answer_PG, valid_PG),
    )


@dataclasses.dataclass(frozen=True)
class Estimator:
    """One value of `jepo.estimator`: its formula, and what that needs."""

    # (ℓ_PG, formatted_PG, valid_PG, **own) → jepo.Coefficients
    coefficients: Callable
    own: tuple[str, ...]  # fields of the config's section `jepo` that it gets by name
    # It needs ℓ of every thought, so `make_thoughts` forces the phrase.
    forced: bool


ESTIMATORS = {
    "practical": Estimator(
        jepo.practical, own=("beta_sup", "format_penalty"), forced=False
    ),
    "multi_sample": Estimator(_multi_sample, own=("beta_sup",), forced=True),
    "one_sample": Estimator(_one_sample, own=("beta_sup",), forced=True),
}


def jepo_batch(
    rollout: Rollout,
    reward_PG,
    valid_PG,
    scores,
    kl_coefficient,
    taken_PG=None,
    *,
    estimator: Callable,
    kl_estimator: str,
) -> tuple[Batch, dict]:
    """The batch that JEPO learns from, and its metrics (arXiv:2503.19618).

    One pass has both gradients, of the thoughts and of the answers; rows that are
    `whole_B` have RLOO's advantage. scores: with `thoughts`, scored. kl_coefficient: of
    this step. estimator: `coefficients` of an `Estimator`, with its own numbers.
    kl_estimator: one of `losses.KL_ESTIMATORS`, for the metric.
    taken_PG: None, since no allocation of rollouts goes with JEPO (check.py).
    """
    del taken_PG
    rows: Thoughts = scores.thoughts
    shape = reward_PG.shape
    whole_PG = rows.whole_B.reshape(shape)
    coefficients = estimator(
        jax.lax.stop_gradient(rows.answer_B).reshape(shape),
        rows.formatted_B.reshape(shape),
        # Valid is here what JEPO learns from: it asks for no verifier's verdict.
        ~whole_PG,
    )
    right_PG = rloo.advantage(reward_PG, valid_PG)
    advantage_PG = jnp.where(whole_PG, right_PG, coefficients.thought_PG)
    format_PG = jnp.where(whole_PG, 0.0, coefficients.format_PG)
    format_B1 = format_PG.reshape(-1, 1)
    advantage_BY = advantage_PG.reshape(-1, 1)
    advantage_BY = advantage_BY + jnp.where(rows.format_BY, format_B1, 0.0)
    # An invalid reward says nothing of a row that is not learned by its reward.
    learned_B1 = (valid_PG | ~whole_PG).reshape(-1, 1)
    thought_BY = rows.thought_BY & learned_B1
    mask_BY = thought_BY | rows.answer_BY
    # Written tokens stand in the same columns of T and of Y, so arrays of the rollout
    # are filled up behind. Answers have no old log-prob: `chosen_RY` leaves them out.
    widen = [(0, 0), (0, mask_BY.shape[1] - rollout.mask_BT.shape[1])]
    kl_BT = token_kl(
        rollout,
        logprob_BT=rollout.logprob_BT,
        reference_BT=scores.reference_BT,
        estimator=kl_estimator,
    )
    reference_BY = None
    if scores.reference_BT is not None:
        reference_BY = jnp.pad(scores.reference_BT, widen)
    batch = Batch(
        tokens_BS=rows.tokens_BS,
        position_BS=rows.position_BS,
        problem_B=rows.problem_B,
        target_BT=rows.target_BY,
        mask_BT=mask_BY,
        advantage_BT=jnp.where(thought_BY, advantage_BY, 0.0),
        old_logprob_BT=jnp.pad(rollout.logprob_BT, widen),
        reference_BT=reference_BY,
        answer_BT=rows.answer_BY,
        answer_weight_BT=jnp.where(
            rows.answer_BY, coefficients.answer_PG.reshape(-1, 1), 0.0
        ),
    )
    metrics = _answer_metrics(rows, shape)
    metrics |= model_metrics(
        batch,
        mask_BT=thought_BY,
        kl_BT=jnp.pad(kl_BT, widen),
        kl_coefficient=kl_coefficient,
    )
    return batch, metrics


def _answer_metrics(rows: Thoughts, shape) -> dict:
    """Metrics: ℓ, the bound, and how often the phrase was missing."""
    answer_PG = rows.answer_B.reshape(shape)
    answered_PG = rows.answered_B.reshape(shape)
    bound_P = jepo.bound(answer_PG, answered_PG)
    return {
        "jepo/bound": mean(bound_P, where=jnp.any(answered_PG, axis=1)),
        "jepo/answer_logprob": mean(answer_PG, where=answered_PG),
        "jepo/unformatted_share": mean(~rows.formatted_B, where=~rows.whole_B),
        "jepo/solved_share": jnp.mean(rows.whole_B),
    }


def jensen_loss(
    logprob_RY, entropy_RY, batch: PackedBatch, *, objective: Callable, **options
):
    """JEPO's loss per token (arXiv:2503.19618), and the statistics of `objective`.

    It is `objective`'s at the thoughts' tokens, −answer_weight · log π at the answers'.
    `objective` gets the options, and returns as `losses.policy_gradient` does.
    """
    loss_RY, means, maxima = objective(logprob_RY, entropy_RY, batch, **options)
    answer_RY = -batch.answer_weight_RY * logprob_RY
    # In its place, not added: `objective` may have an entropy bonus there too.
    return jnp.where(batch.answer_RY, answer_RY, loss_RY), means, maxima
