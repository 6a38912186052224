"""Losses per predicted token, of a model's parameters and packed rows.

Each returns the loss of every token, and two dicts of statistics of every token by
name: those whose means over the chosen tokens are metrics, and those whose maxima are.
All are arrays [R, Y].
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from limr_jax.algorithms import cispo, gspo, kl, mismatch, ppo
from limr_jax.learner.batch import PackedBatch
from limr_jax.learner.critic import response_values
from limr_jax.learner.logprobs import response_logprob
from limr_jax.models.config import ComputeConfig

KL_ESTIMATORS = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3}
# Where the KL stands → its estimator where none is named.
KL_PLACEMENTS = {"loss": "k3", "reward": "k1"}


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """One value of `loss`: what the policy's advantages weigh."""

    # (logprob_RY, PackedBatch, **bounds) → loss_RY, clipped_RY
    per_token: Callable
    bounds: tuple[str, ...]  # fields of the config's section `clip` that it gets
    normaliser: str = ""  # its paper's, above the algorithm's; empty: it has none


def _token_ratio(logprob_RY, batch: PackedBatch, **bounds):
    """`ppo.clip_loss` of packed rows."""
    return ppo.clip_loss(
        logprob_RY,
        old_logprob_BT=batch.old_logprob_RY,
        advantage_BT=batch.advantage_RY,
        # JEPO's answers were chosen by nobody: they have no ratio.
        mask_BT=batch.chosen_RY,
        **bounds,
    )


def _response_ratio(logprob_RY, batch: PackedBatch, **bounds):
    """The same of GSPO's ratio, one a response; no response is cut over two rows."""
    log_ratio_RY = gspo.log_ratio(
        logprob_RY,
        old_logprob_BT=batch.old_logprob_RY,
        mask_BT=batch.chosen_RY,
        first_BT=batch.layout.first_RY if batch.layout else None,
    )
    return ppo.surrogate(log_ratio_RY, batch.advantage_RY, batch.chosen_RY, **bounds)


def _clipped_weight(logprob_RY, batch: PackedBatch, **bounds):
    """`cispo.loss` of packed rows."""
    return cispo.loss(
        logprob_RY,
        old_logprob_BT=batch.old_logprob_RY,
        advantage_BT=batch.advantage_RY,
        mask_BT=batch.chosen_RY,
        **bounds,
    )


LOSSES = {
    "clip": PolicyLoss(_token_ratio, bounds=("low", "high", "dual")),
    "gspo": PolicyLoss(
        _response_ratio, bounds=("low", "high", "dual"), normaliser="sequence"
    ),
    "cispo": PolicyLoss(_clipped_weight, bounds=("low", "high"), normaliser="token"),
}


@dataclasses.dataclass(frozen=True)
class Correction:
    """One value of `mismatch.correction`: what a token's loss is weighed by."""

    # (sampler_RY, learner_RY, **bounds) → weight_RY, touched_RY; None: by nothing
    weight: Callable | None
    bounds: tuple[str, ...] = ()  # fields of the config's section `mismatch`


CORRECTIONS = {
    "none": Correction(None),
    "tis": Correction(mismatch.tis, bounds=("cap",)),
    "icepop": Correction(mismatch.icepop, bounds=("low", "high")),
    "ipo": Correction(mismatch.ipo, bounds=("limit",)),
}


def policy_loss(
    params,
    micro: PackedBatch,
    temperature,
    *,
    objective: Callable,
    compute: ComputeConfig,
):
    """The loss that `objective` gives packed rows under the policy's parameters.

    `objective(logprob_RY, entropy_RY, micro)` gets, in nats, the log-probability of
    each predicted token and the entropy of its distribution at this temperature, and
    returns what this function does: a loss and two dicts of statistics, as the module
    says.
    """
    logprob_RY, entropy_RY = response_logprob(
        params,
        micro.tokens_RW,
        micro.position_RW,
        segment_BS=micro.segment_RW,
        temperature=temperature,
        layout=micro.layout,
        response_length=micro.mask_RY.shape[1],
        compute=compute,
    )
    return objective(logprob_RY, entropy_RY, micro)


def cross_entropy(logprob_RY, entropy_RY, batch: PackedBatch):
    """The loss of supervised fine-tuning per token: −log π, in nats."""
    return -logprob_RY, {"entropy": entropy_RY}, {}


def policy_gradient(
    logprob_RY,
    entropy_RY,
    batch: PackedBatch,
    *,
    loss: str = "clip",
    clip_low: float,
    clip_high: float,
    clip_dual: float = 0.0,
    correction: Callable | None = None,
    kl_coefficient,
    kl_estimator: str,
    kl_placement: str,
    entropy_coefficient: float,
):
    """The loss of reinforcement learning per token, with KL and entropy terms.

    It is that of LOSSES which `loss` names, minus the entropy bonus, plus
    `kl_coefficient` times `kl.loss_term` where the batch has the reference's
    log-probabilities and `kl_placement` is "loss". kl_estimator: one of KL_ESTIMATORS.
    correction: `weight` of a `Correction`, with its bounds; None: none.
    """
    clip = {"low": clip_low, "high": clip_high, "dual": clip_dual}
    bounds = {f"clip_{name}": clip[name] for name in LOSSES[loss].bounds}
    loss_RY, clipped_RY = LOSSES[loss].per_token(logprob_RY, batch, **bounds)
    factor_RY, apart = _mismatch(logprob_RY, batch, correction)
    if factor_RY is not None:
        loss_RY = factor_RY * loss_RY
    # In a step's first update what rollout and learner compute differently (nothing
    # where it is recomputed); later ones add what the policy has moved.
    drift_RY = jnp.abs(logprob_RY - batch.old_logprob_RY)
    means = {"entropy": entropy_RY, "clipped_share": clipped_RY, "drift": drift_RY}
    maxima = {"drift_max": drift_RY}
    maxima["mismatch/log_weight_max"] = apart["mismatch/log_weight"]
    if entropy_coefficient:  # a Python number: at 0 nothing is compiled
        loss_RY = loss_RY - entropy_coefficient * entropy_RY
    if batch.reference_RY is not None and kl_placement == "loss":
        kl_RY = kl.loss_term(
            logprob_RY,
            # The tokens are the rollout's, whatever the ratio is to.
            old_logprob_BT=_sampler(batch),
            reference_BT=batch.reference_RY,
            mask_BT=batch.chosen_RY,
            estimator=KL_ESTIMATORS[kl_estimator],
        )
        loss_RY = loss_RY + kl_coefficient * kl_RY
    return loss_RY, means | apart, maxima


def _sampler(batch: PackedBatch):
    """Log-probabilities of the policy that wrote the tokens, as it had them."""
    if batch.sampler_logprob_RY is None:
        return batch.old_logprob_RY
    return batch.sampler_logprob_RY


def _mismatch(logprob_RY, batch: PackedBatch, correction: Callable | None):
    """What the correction multiplies each token's loss by, or None; and statistics.

    w is of the learner's log-probabilities before the step where these were recomputed.
    Else it is the ratio of this update, which the loss has as a factor already.
    """
    recomputed = batch.sampler_logprob_RY is not None
    learner_RY = batch.old_logprob_RY if recomputed else logprob_RY
    # Off the mask it is whatever stands there: both are 0, so w is 1. No gradient: w
    # says how much a token counts, and is nothing to climb.
    sampler_RY, learner_RY = (
        jax.lax.stop_gradient(jnp.where(batch.chosen_RY, x_RY, 0))
        for x_RY in (_sampler(batch), learner_RY)
    )
    log_weight_RY = mismatch.log_weight(sampler_RY, learner_RY)
    weight_RY = jnp.exp(log_weight_RY)
    statistics = {
        "mismatch/log_weight": jnp.abs(log_weight_RY),
        "mismatch/kl": kl.k3(sampler_RY, learner_RY),
        "mismatch/weight": weight_RY,
        "mismatch/weight_squared": weight_RY**2,
    }
    if correction is None:
        touched_RY, factor_RY = jnp.zeros_like(batch.chosen_RY), None
    else:
        factor_RY, touched_RY = correction(sampler_RY, learner_RY)
        factor_RY = factor_RY if recomputed else factor_RY / weight_RY
    return factor_RY, statistics | {"mismatch/touched_share": touched_RY}


def with_sample_size(metrics: dict) -> dict:
    """The metrics with `mismatch/ess` in the place of the weights' two moments.

    It is the effective sample size (Σw)² / Σw² as a share of the tokens, 0 to 1; 1
    where there is none.
    """
    metrics = dict(metrics)
    mean = metrics.pop("mismatch/weight")
    square = metrics.pop("mismatch/weight_squared")
    size = mean**2 / jnp.where(square > 0, square, 1)
    metrics["mismatch/ess"] = jnp.where(square > 0, size, 1)
    return metrics


def critic_loss(
    params, micro: PackedBatch, *, value_clip: float, compute: ComputeConfig
):
    """The critic's loss per token: PPO's clipped value loss under `params`.

    value_clip: how far a value may move in a step and still lower the loss, in units of
    the reward.
    """
    value_RY = response_values(
        params,
        micro.tokens_RW,
        micro.position_RW,
        segment_BS=micro.segment_RW,
        layout=micro.layout,
        response_length=micro.mask_RY.shape[1],
        compute=compute,
    )
    loss_RY, clipped_RY = ppo.value_loss(
        value_RY,
        old_value_BT=micro.old_value_RY,
        return_BT=micro.return_RY,
        mask_BT=micro.mask_RY,
        clip=value_clip,
    )
    return loss_RY, {"value": value_RY, "clipped_share": clipped_RY}, {}
