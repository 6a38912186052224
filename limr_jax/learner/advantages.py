"""Rewards become advantages, and a step's rollouts a batch to learn from.

DASH's filter drops rollouts of |advantage| ≤ tau before the forward pass. Their share
of the loss's denominator stays ("all"), so that at τ = 0 the gradient is the unfiltered
one, or goes ("kept"). What a KL or entropy term of the loss would have added for them
is lost; with `filter_keep_kl` nothing is dropped where the loss has such a term.

`ALGORITHMS` is the one table of what `algorithm` may be: an estimator is its own file
in algorithms/ and a row of the table, and its fields stand in configs/base.py.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp

from limr_jax.algorithms import (
    dash,
    dr_grpo,
    grpo,
    jepo,
    maxrl,
    ppo,
    reinforce_pp,
    rloo,
)
from limr_jax.config import limits
from limr_jax.learner.batch import Batch, Scores
from limr_jax.learner.losses import KL_ESTIMATORS, LOSSES
from limr_jax.rollout.types import Rollout


def by_group(
    rollout: Rollout,
    reward_PG,
    valid_PG,
    penalty_BT,
    value_BT,
    *,
    estimator: Callable,
    centre: Callable = rloo.advantage,
    **own: Any,
):
    """Advantages of a step that are the same for all tokens of a rollout.

    estimator: (reward_PG, valid_PG, **own) → advantage_PG, of rewards alone.
    penalty_BT: what a KL in the reward takes off each token's. The sum of a rollout's
    penalties, from which `centre` has taken their group's baseline, is taken off its
    advantage: never divided by a std of its own. value_BT is not read.
    Returns advantage_BT, 0 at padding, and None for the returns, which only a critic
    has.
    """
    penalty_PG = jnp.sum(penalty_BT, axis=1).reshape(reward_PG.shape)
    advantage_PG = estimator(reward_PG, valid_PG, **own) - centre(penalty_PG, valid_PG)
    return jnp.where(rollout.mask_BT, advantage_PG.reshape(-1, 1), 0.0), None


def by_token(
    rollout: Rollout,
    reward_PG,
    valid_PG,
    penalty_BT,
    value_BT,
    *,
    gamma: float,
    lam: float,
    value_lam: float,
    bootstrap_truncated: bool,
    reward_clip: float,
    whiten: bool,
):
    """Advantages and returns of a step from a critic's values: GAE (arXiv:1506.02438).

    Both are [B, T], 0 at padding and for invalid rollouts. The reward, clipped to
    ± `reward_clip` (0: as it is), comes with the last token, a penalty with its own.
    Advantages are whitened over all tokens of valid rollouts, the penalties among them,
    as LIMR's released code does: the critic's values hold those, so nothing of a reward
    could be whitened without them. gamma and lam are γ and λ; value_lam: λ of the
    returns, below 0 as of the advantages.

    With `bootstrap_truncated` a response that is cut ends a token earlier, with the
    critic's value of what stands there. Its reward comes with that token; the cut one
    has an advantage of 0, and its return is its value before the step.
    """
    mask_BT = rollout.mask_BT & valid_PG.reshape(-1, 1)
    if reward_clip:
        reward_PG = jnp.clip(reward_PG, -reward_clip, reward_clip)
    length_B1 = jnp.sum(rollout.mask_BT, axis=1, keepdims=True)
    columns_1T = jnp.arange(mask_BT.shape[1])[None]
    cut_BT = after_B = None
    if bootstrap_truncated:
        # The critic reads what stands before each token, so of the whole response it
        # has no value, but of all but its last token it has.
        truncated_B1 = rollout.truncated_B[:, None]
        cut_BT = mask_BT & truncated_B1 & (columns_1T == length_B1 - 1)
        after_B = jnp.sum(jnp.where(cut_BT, value_BT, 0), axis=1)
        mask_BT, length_B1 = mask_BT & ~cut_BT, length_B1 - truncated_B1
    last_BT = columns_1T == length_B1 - 1
    reward_BT = jnp.where(last_BT, reward_PG.reshape(-1, 1), 0.0) - penalty_BT
    estimate = partial(
        ppo.gae, reward_BT, value_BT, mask_BT, gamma=gamma, after_B=after_B
    )
    advantage_BT, return_BT = estimate(lam=lam)
    if value_lam >= 0:
        _, return_BT = estimate(lam=value_lam)
    if cut_BT is not None:
        return_BT = jnp.where(cut_BT, value_BT, return_BT)
    if whiten:
        advantage_BT = ppo.whiten(advantage_BT, mask_BT)
    return advantage_BT, return_BT


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """One value of `algorithm`: how rewards become advantages, and what that needs."""

    # (Rollout, reward_PG, valid_PG, penalty_BT, value_BT, **own) → advantage_BT,
    # return_BT; None: the batch is JEPO's.
    advantage: Callable | None
    normaliser: str  # its paper's, where the field loss_normaliser names none
    # The fields of its own, which `advantage` gets by name, and what each may be: a row
    # of limits.py. They stand in this section of the config.
    section: str = ""
    own: Mapping[str, limits.Row] = dataclasses.field(default_factory=dict)
    # (group size) → the largest advantage that there can be.
    largest: Callable[[int], float] = lambda group: math.inf
    needs_group: bool = True  # compares the rollouts of a problem
    # An advantage is relative to those of other problems of its step.
    over_problems: bool = False
    needs_critic: bool = False
    needs_verifier: bool = True  # learns from rewards
    learns_answers: bool = False  # learns from the reference answers' tokens
    divides_by_reward: bool = False  # so that none may be below 0


ALGORITHMS = {
    "grpo": Algorithm(
        partial(by_group, estimator=grpo.advantage),
        "sequence",
        largest=grpo.largest_advantage,
    ),
    "dr_grpo": Algorithm(
        partial(by_group, estimator=dr_grpo.advantage, centre=dr_grpo.advantage),
        "constant",
    ),
    "rloo": Algorithm(partial(by_group, estimator=rloo.advantage), "rollout"),
    # The baseline in JEPO's paper: clipped after a division by the group's std.
    "rloo_normalised": Algorithm(
        partial(by_group, estimator=jepo.normalised_rloo),
        "rollout",
        largest=lambda group: 1.0,
    ),
    # Its estimator is of whole responses, as RLOO's is.
    "maxrl": Algorithm(
        partial(by_group, estimator=maxrl.advantage),
        "rollout",
        largest=maxrl.largest_advantage,
        divides_by_reward=True,
    ),
    "reinforce_pp": Algorithm(
        partial(
            by_group,
            estimator=reinforce_pp.advantage,
            centre=reinforce_pp.above_the_others,
        ),
        "token",
        needs_group=False,
        over_problems=True,
    ),
    "ppo": Algorithm(
        by_token,
        "token",
        section="critic",
        own={
            "gamma": limits.Real(0, 1),
            "lam": limits.Real(0, 1),
            "value_lam": limits.Real(-1, 1),  # below 0: lam
            "bootstrap_truncated": limits.Flag(),
            "reward_clip": limits.Real(0, limits.LARGE),
            "whiten": limits.Flag(),
        },
        needs_group=False,
        over_problems=True,
        needs_critic=True,
    ),
    "jepo": Algorithm(
        None,
        "rollout",
        section="jepo",
        own={
            "estimator": limits.Choice(("practical", "multi_sample", "one_sample")),
            "beta_sup": limits.Real(0, limits.LARGE),
            "format_penalty": limits.Real(0, limits.LARGE),
            "semi_verifiable": limits.Flag(),
        },
        needs_verifier=False,
        learns_answers=True,
    ),
}


def own_limits() -> dict[str, limits.Row]:
    """What each field of an algorithm's own may be: its name → a row of limits.py."""
    return {
        f"{row.section}.{name}": limit
        for row in ALGORITHMS.values()
        for name, limit in row.own.items()
    }


def normaliser(name: str, algorithm: str, loss: str = "clip") -> str:
    """The loss normaliser: `name`, or where that is empty a paper's.

    That is the loss's paper, or the algorithm's where the loss's has none.
    """
    return name or LOSSES[loss].normaliser or ALGORITHMS[algorithm].normaliser


def rl_batch(
    rollout: Rollout,
    reward_PG,
    valid_PG,
    scores: Scores,
    kl_coefficient,
    taken_PG=None,
    *,
    advantage: Callable,
    kl_estimator: str,
    kl_placement: str,
    entropy_coefficient: float,
    mask_truncated: bool,
    filter_tau: float,  # below 0: nothing is dropped
    filter_normaliser: str,
    filter_keep_kl: bool,
) -> tuple[Batch, dict]:
    """The batch that a step learns from, with masks and advantages, and its metrics.

    It is made once a step and stays the same for all its updates. advantage: that of an
    `Algorithm`, with its own numbers. kl_coefficient: of this step. taken_PG: bool, the
    rollouts to learn from; the other valid ones are in their group's statistics alone.
    None: all.

    With `kl_placement` "reward", the reward is lowered by the coefficient times the KL
    estimate of each token. Truncated rollouts stay in their group's statistics (what
    was not finished was not right) whether or not they are learned.
    """
    tokens_BS, position_BS = rollout.sequences()
    learned_B = valid_PG.reshape(-1) & ~(mask_truncated & rollout.truncated_B)
    if taken_PG is not None:
        learned_B &= taken_PG.reshape(-1)
    mask_BT = rollout.mask_BT & learned_B[:, None]
    old_BT = rollout.logprob_BT if scores.old_BT is None else scores.old_BT
    kl_BT = token_kl(rollout, old_BT, scores.reference_BT, kl_estimator)
    in_reward = kl_placement == "reward"
    penalty_BT = kl_coefficient * in_reward * kl_BT
    advantage_BT, return_BT = advantage(
        rollout, reward_PG, valid_PG, penalty_BT, scores.value_BT
    )
    # GAE's differ by token: a rollout is dropped only if none of them exceeds τ.
    advantage_B = jnp.max(jnp.abs(advantage_BT), axis=1)
    in_loss = scores.reference_BT is not None and not in_reward
    keep_B, counted_BT = None, mask_BT
    if filter_tau >= 0 and not (filter_keep_kl and (in_loss or entropy_coefficient)):
        keep_B = dash.keep(advantage_B, learned_B, tau=filter_tau)
        # `weigh` counts the mask's tokens and rows: what is off it has no share.
        if filter_normaliser == "kept":
            counted_BT = mask_BT & keep_B[:, None]
    batch = Batch(
        tokens_BS=tokens_BS,
        position_BS=position_BS,
        mask_BT=counted_BT,
        keep_B=keep_B,
        problem_B=rollout.problem_B,
        # Truncated rollouts have an advantage, but may not be learned.
        advantage_BT=jnp.where(mask_BT, advantage_BT, 0.0),
        old_logprob_BT=old_BT,
        sampler_logprob_BT=None if scores.old_BT is None else rollout.logprob_BT,
        reference_BT=scores.reference_BT,
        old_value_BT=scores.value_BT,
        return_BT=return_BT,
    )
    # Rollouts that were not asked for have no advantage, and are none to be kept.
    kept = jnp.sum(learned_B if keep_B is None else keep_B)
    metrics = {
        "advantage_abs_mean": jnp.sum(advantage_B) / rollout.quota,
        "kept_share": kept / rollout.quota,
    }
    metrics |= model_metrics(batch, mask_BT, kl_BT, kl_coefficient)
    return batch, metrics


def token_kl(rollout: Rollout, logprob_BT, reference_BT, estimator: str):
    """KL to the reference of each token that was written, in nats, fp32 [B, T].

    logprob_BT: log-probabilities of the policy that is learned, before the step: the
    learner's own where it has them, since π in KL(π ‖ π_ref) is not the rollout's.
    reference_BT: those of the reference; None, without one, gives 0. estimator: a name
    in `losses.KL_ESTIMATORS`.
    """
    if reference_BT is None:
        return jnp.zeros_like(logprob_BT)
    kl_BT = KL_ESTIMATORS[estimator](logprob_BT, reference_BT)
    return jnp.where(rollout.mask_BT, kl_BT, 0.0)


def model_metrics(batch: Batch, mask_BT, kl_BT, kl_coefficient) -> dict:
    """Metrics of the reference and of the critic; empty where there is neither.

    mask_BT: the learned tokens that the policy chose. kl_BT: `token_kl`, in nats.
    """
    metrics = {}
    if batch.reference_BT is not None:
        tokens = jnp.maximum(jnp.sum(mask_BT), 1)
        metrics["kl"] = jnp.sum(jnp.where(mask_BT, kl_BT, 0.0)) / tokens
        metrics["kl_coefficient"] = kl_coefficient
    if batch.old_value_BT is not None:
        # 1 − Var(R − V) / Var(R); 0 where the returns do not vary.
        unexplained = jnp.var(batch.return_BT - batch.old_value_BT, where=mask_BT)
        variance = jnp.var(batch.return_BT, where=mask_BT)
        explained = jnp.where(variance > 0, 1 - unexplained / variance, 0.0)
        metrics["critic/explained_variance"] = explained
    return metrics
