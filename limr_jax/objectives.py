"""What is learned: rollouts become a batch, log-probabilities and values a loss.

The weights of a batch hold the normaliser of a whole minibatch, so that micro-batches,
devices and hosts only add up. Losses and their statistics are given per token.

DASH's filter drops rollouts of |advantage| ≤ tau before the forward pass. Their share
of the loss's denominator stays ("all"), so that at τ = 0 the gradient is the unfiltered
one, or goes ("kept"). What a KL or entropy term of the loss would have added for them
is lost; with `filter_keep_kl` nothing is dropped where the loss has such a term.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from limr_jax.algorithms import dash, dr_grpo, grpo, kl, ppo, reinforce_pp, rloo
from limr_jax.chunks import join_rows, split_rows
from limr_jax.critic import response_values
from limr_jax.logprob import response_logprob
from limr_jax.packing import Layout
from limr_jax.rollout import Rollout

KL_ESTIMATORS = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """What an update reads: one row a rollout (or a text), S = L + T columns."""

    tokens_BS: jax.Array  # int32
    position_BS: jax.Array  # int32, -1 = padding
    mask_BT: jax.Array  # bool: the tokens among the last T columns that are learned
    weight_BT: jax.Array  # fp32: each token's share of the loss
    segment_BS: jax.Array | None = None  # int32: which of a packed row's texts
    layout: Layout | None = None  # of a packed row; None: the last T are predicted
    problem_B: jax.Array | None = None  # int32: whose prompt; None: is not to be packed
    advantage_BT: jax.Array | None = None  # fp32
    old_logprob_BT: jax.Array | None = None  # fp32, of the policy that chose the token
    reference_BT: jax.Array | None = None  # fp32, of the reference; None without KL
    old_value_BT: jax.Array | None = None  # fp32, of the critic before the step
    return_BT: jax.Array | None = None  # fp32: the critic's targets
    keep_B: jax.Array | None = None  # bool: rows that the filter keeps; None: all
    answer_BT: jax.Array | None = None  # bool: tokens of JEPO's reference answers
    answer_weight_BT: jax.Array | None = None  # fp32, of their log-probabilities

    @property
    def chosen_BT(self) -> jax.Array:
        """bool: the learned tokens that the policy wrote: not JEPO's answers."""
        if self.answer_BT is None:
            return self.mask_BT
        return self.mask_BT & ~self.answer_BT


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scores:
    """What is found out about the rollouts' tokens before the update."""

    reference_BT: jax.Array | None = None  # fp32 log-probability; None without KL
    value_BT: jax.Array | None = None  # fp32; None without a critic
    thoughts: Any = None  # thoughts.Thoughts of JEPO, scored; None without


def _per_token(mask_BT, counted_B):
    """Every token of the batch weighs the same."""
    return mask_BT / jnp.maximum(jnp.sum(mask_BT), 1)


def _per_sequence(mask_BT, counted_B):
    """Every rollout weighs the same, and each token within it."""
    length_B1 = jnp.maximum(jnp.sum(mask_BT, axis=1, keepdims=True), 1)
    rows = jnp.maximum(jnp.sum(jnp.any(mask_BT, axis=1)), 1)
    return mask_BT / (length_B1 * rows)


def _constant(mask_BT, counted_B):
    """Divided by counted rows × the longest response allowed, whatever was written."""
    return mask_BT / jnp.maximum(jnp.sum(counted_B) * float(mask_BT.shape[1]), 1)


def _per_rollout(mask_BT, counted_B):
    """Summed over a rollout's tokens, every rollout weighs the same."""
    return mask_BT / jnp.maximum(jnp.sum(jnp.any(mask_BT, axis=1)), 1)


# (mask_BT, of counted rows alone; counted_B) → weight_BT.
NORMALISERS = {
    "token": _per_token,
    "sequence": _per_sequence,
    "constant": _constant,
    "rollout": _per_rollout,
}


def token_weights(mask_BT, counted_B, normaliser: str, minibatches: int):
    """Each token's share of the loss of its own minibatch, weight_BT.

    counted_B: rows that the loss is divided by; the others weigh nothing.
    """
    rows = mask_BT & counted_B[:, None], counted_B
    parts = (split_rows(x, minibatches) for x in rows)
    return join_rows(jax.vmap(NORMALISERS[normaliser])(*parts))


def by_group(
    rollout: Rollout, reward_PG, valid_PG, penalty_BT, value_BT, *, estimator: Callable
):
    """The same advantage for all tokens of a rollout, from its group's rewards.

    estimator: (reward_PG, valid_PG) → advantage_PG. Returns advantage_BT, and None for
    the returns, which only a critic has. Its reward is lowered by all its penalties.
    """
    shaped_PG = reward_PG - jnp.sum(penalty_BT, axis=1).reshape(reward_PG.shape)
    advantage_B1 = estimator(shaped_PG, valid_PG).reshape(-1, 1)
    return jnp.where(rollout.mask_BT, advantage_B1, 0.0), None


def by_token(
    rollout: Rollout,
    reward_PG,
    valid_PG,
    penalty_BT,
    value_BT,
    *,
    gamma: float,
    lam: float,
    reward_clip: float,
    whiten: bool,
):
    """GAE against the critic's values: advantage_BT and return_BT.

    The reward, clipped to ± `reward_clip` (0: as it is), comes with the last token, a
    penalty with its own. Advantages are whitened over all tokens of valid rollouts.
    """
    mask_BT = rollout.mask_BT & valid_PG.reshape(-1, 1)
    if reward_clip:
        reward_PG = jnp.clip(reward_PG, -reward_clip, reward_clip)
    length_B1 = jnp.sum(rollout.mask_BT, axis=1, keepdims=True)
    last_BT = jnp.arange(mask_BT.shape[1])[None] == length_B1 - 1
    reward_BT = jnp.where(last_BT, reward_PG.reshape(-1, 1), 0.0) - penalty_BT
    advantage_BT, return_BT = ppo.gae(
        reward_BT, value_BT, mask_BT, gamma=gamma, lam=lam
    )
    if whiten:
        advantage_BT = ppo.whiten(advantage_BT, mask_BT)
    return advantage_BT, return_BT


ADVANTAGES = {
    "grpo": partial(by_group, estimator=grpo.advantage),
    "dr_grpo": partial(by_group, estimator=dr_grpo.advantage),
    "rloo": partial(by_group, estimator=rloo.advantage),
    "reinforce_pp": partial(by_group, estimator=reinforce_pp.advantage),
    "ppo": by_token,
}


def rl_batch(
    rollout: Rollout,
    reward_PG,
    valid_PG,
    scores: Scores,
    kl_coefficient,
    *,
    advantage: Callable,
    normaliser: str,
    kl_estimator: str,
    kl_placement: str,
    entropy_coefficient: float,
    mask_truncated: bool,
    filter_tau: float,  # below 0: nothing is dropped
    filter_normaliser: str,
    filter_keep_kl: bool,
    minibatches: int,
) -> tuple[Batch, dict]:
    """The masks, weights and advantages of one step's rollouts, frozen for the step.

    `advantage` is one of ADVANTAGES.

    With `kl_placement` "reward", the reward is lowered by the coefficient times the KL
    estimate of each token. Truncated rollouts stay in their group's statistics (what
    was not finished was not right) whether or not they are learned.
    """
    tokens_BS, position_BS = rollout.sequences()
    learned_B = valid_PG.reshape(-1) & ~(mask_truncated & rollout.truncated_B)
    mask_BT = rollout.mask_BT & learned_B[:, None]
    kl_BT = token_kl(rollout, scores.reference_BT, kl_estimator)
    in_reward = kl_placement == "reward"
    penalty_BT = kl_coefficient * in_reward * kl_BT
    advantage_BT, return_BT = advantage(
        rollout, reward_PG, valid_PG, penalty_BT, scores.value_BT
    )
    advantage_B = jnp.max(jnp.abs(advantage_BT), axis=1)
    in_loss = scores.reference_BT is not None and not in_reward
    keep_B, counted_B = None, jnp.ones_like(learned_B)
    if filter_tau >= 0 and not (filter_keep_kl and (in_loss or entropy_coefficient)):
        keep_B = dash.keep(advantage_B, learned_B, tau=filter_tau)
        counted_B = keep_B | (filter_normaliser == "all")
    batch = Batch(
        tokens_BS=tokens_BS,
        position_BS=position_BS,
        mask_BT=mask_BT,
        keep_B=keep_B,
        weight_BT=token_weights(mask_BT, counted_B, normaliser, minibatches),
        problem_B=rollout.problem_B,
        advantage_BT=jnp.where(mask_BT, advantage_BT, 0.0),
        old_logprob_BT=rollout.logprob_BT,
        reference_BT=scores.reference_BT,
        old_value_BT=scores.value_BT,
        return_BT=return_BT,
    )
    kept = jnp.mean(learned_B if keep_B is None else keep_B)
    metrics = {"advantage_abs_mean": jnp.mean(advantage_B), "kept_share": kept}
    return batch, metrics | told(batch, mask_BT, kl_BT, kl_coefficient)


def token_kl(rollout: Rollout, reference_BT, estimator: str):
    """KL to the reference of each token that was written; 0 without one."""
    if reference_BT is None:
        return jnp.zeros_like(rollout.logprob_BT)
    kl_BT = KL_ESTIMATORS[estimator](rollout.logprob_BT, reference_BT)
    return jnp.where(rollout.mask_BT, kl_BT, 0.0)


def told(batch: Batch, mask_BT, kl_BT, kl_coefficient) -> dict:
    """Metrics of the reference and of the critic, where there are any.

    mask_BT: the learned tokens that the policy chose.
    """
    metrics = {}
    if batch.reference_BT is not None:
        tokens = jnp.maximum(jnp.sum(mask_BT), 1)
        metrics["kl"] = jnp.sum(jnp.where(mask_BT, kl_BT, 0.0)) / tokens
        metrics["kl_coefficient"] = kl_coefficient
    if batch.old_value_BT is not None:
        # 1 − Var(R − V) / Var(R); 0 where the returns do not vary.
        apart = jnp.var(batch.return_BT - batch.old_value_BT, where=mask_BT)
        spread = jnp.var(batch.return_BT, where=mask_BT)
        explained = jnp.where(spread > 0, 1 - apart / spread, 0.0)
        metrics["critic/explained_variance"] = explained
    return metrics


def policy_loss(
    params, micro: Batch, temperature, *, objective: Callable, **model_options
):
    """`objective(logprob_BT, entropy_BT, micro)` under the policy's parameters."""
    logprob_BT, entropy_BT = response_logprob(
        params,
        micro.tokens_BS,
        micro.position_BS,
        micro.segment_BS,
        temperature,
        micro.layout,
        response_length=micro.mask_BT.shape[1],
        **model_options,
    )
    return objective(logprob_BT, entropy_BT, micro)


def cross_entropy(logprob_BT, entropy_BT, batch: Batch):
    """Supervised fine-tuning: −log π of each learned token."""
    return -logprob_BT, {"entropy": entropy_BT}, {}


def policy_gradient(
    logprob_BT,
    entropy_BT,
    batch: Batch,
    *,
    clip_low: float,
    clip_high: float,
    kl_coefficient,
    kl_estimator: str,
    kl_placement: str,
    entropy_coefficient: float,
):
    """PPO's clipped loss, KL to the reference in the loss, entropy bonus; per token."""
    loss_BT, clipped_BT = ppo.clip_loss(
        logprob_BT,
        batch.old_logprob_BT,
        batch.advantage_BT,
        batch.chosen_BT,
        clip_low=clip_low,
        clip_high=clip_high,
    )
    drift_BT = jnp.abs(logprob_BT - batch.old_logprob_BT)
    means = {"entropy": entropy_BT, "clipped_share": clipped_BT, "drift": drift_BT}
    if entropy_coefficient:
        loss_BT = loss_BT - entropy_coefficient * entropy_BT
    if batch.reference_BT is not None and kl_placement == "loss":
        # Masked before k3's exp: elsewhere the reference is 0, or of another token, and
        # inf would make the gradient 0 · inf = nan.
        apart_BT = logprob_BT - batch.reference_BT
        apart_BT = jnp.where(batch.chosen_BT, apart_BT, 0.0)
        kl_BT = KL_ESTIMATORS[kl_estimator](apart_BT, jnp.zeros_like(apart_BT))
        loss_BT = loss_BT + kl_coefficient * kl_BT
    return loss_BT, means, {"drift_max": drift_BT}


def critic_loss(params, micro: Batch, *, value_clip: float, **model_options):
    """PPO's clipped value loss of the critic's parameters, per token."""
    value_BT = response_values(
        params,
        micro.tokens_BS,
        micro.position_BS,
        micro.segment_BS,
        micro.layout,
        response_length=micro.mask_BT.shape[1],
        **model_options,
    )
    loss_BT, clipped_BT = ppo.value_loss(
        value_BT, micro.old_value_BT, micro.return_BT, micro.mask_BT, clip=value_clip
    )
    return loss_BT, {"value": value_BT, "clipped_share": clipped_BT}, {}
