"""Prompt samplers that learn how often a problem is solved: CDAS, prioritized, MoPPS.

The formulas are in `algorithms/`; here they meet the interface of `prompt_sampler`. An
epoch is ceil(N / P) steps. Invalid rollouts count neither as right nor as wrong.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from limr_jax import prompt_sampler
from limr_jax.algorithms import cdas as cdas_math
from limr_jax.algorithms import mopps as mopps_math
from limr_jax.algorithms import prioritized as prioritized_math
from limr_jax.prompt_sampler import Order, PromptSampler


def _counts(correct_PG, valid_PG):
    """Right responses of each group, and valid ones; fp32."""
    right_P = jnp.sum(valid_PG & (correct_PG > 0), axis=1, dtype=jnp.float32)
    return right_P, jnp.sum(valid_PG, axis=1, dtype=jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CdasState:
    """Difficulties and competence, and the order of the first epoch."""

    order: Order  # of the first epoch
    step: jax.Array  # int32: steps drawn
    learned: cdas_math.State


def cdas(*, problems: int, prompts: int, key, initial_count: float) -> PromptSampler:
    """CDAS: problems as hard as the policy is able (arXiv:2505.17652).

    The first epoch visits every problem once; `key` is that of its order.
    `initial_count` is 0 with the paper's weights and 1 with its code's.
    """
    first_epoch = -(-problems // prompts)

    def init():
        order = prompt_sampler.first_order(key, problems)
        return CdasState(order, jnp.int32(0), cdas_math.init(problems))

    def in_order(state, key):
        return prompt_sampler.draw_in_order(state.order, key, prompts)

    def aligned(state, key):
        ids_P = cdas_math.choose(state.learned, key, prompts=prompts)
        return state.order, ids_P.astype(jnp.int32)

    def sample(state, key):
        order, ids_P = jax.lax.cond(
            state.step < first_epoch, in_order, aligned, state, key
        )
        return CdasState(order, state.step + 1, state.learned), ids_P

    def update(state, ids_P, correct_PG, valid_PG):
        right_P, valid_P = _counts(correct_PG, valid_PG)
        learned = cdas_math.update(
            state.learned,
            ids_P,
            right_P / jnp.maximum(valid_P, 1),
            valid_P > 0,
            initial_count=initial_count,
        )
        return dataclasses.replace(state, learned=learned)

    def report(state, ids_P):
        learned = state.learned
        gap_P = learned.difficulty_N[ids_P] - learned.competence
        return {
            "epoch": state.step / first_epoch,
            "cdas/competence": learned.competence,
            "cdas/drawn_difficulty": jnp.mean(learned.difficulty_N[ids_P]),
            "cdas/drawn_gap": jnp.mean(jnp.abs(gap_P)),
            "cdas/drawn_easy_share": jnp.mean(gap_P <= 0),
            "cdas/unseen_share": jnp.mean(learned.visits_N == 0),
        }

    return PromptSampler(init, sample, update, report)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PassRates:
    """What each problem's rollouts were, over all visits."""

    step: jax.Array  # int32: steps drawn
    right_N: jax.Array  # fp32: right responses
    valid_N: jax.Array  # fp32: valid responses


def prioritized(*, problems: int, prompts: int, floor: float) -> PromptSampler:
    """Draws by 1 − pass rate so far, never below `floor` (arXiv:2501.12599)."""
    epoch_steps = -(-problems // prompts)
    weight = partial(prioritized_math.weight, floor=floor)

    def init():
        zeros_N = jnp.zeros((problems,), jnp.float32)
        return PassRates(jnp.int32(0), zeros_N, zeros_N)

    def sample(state, key):
        weight_N = weight(state.right_N, state.valid_N)
        ids_P = prompt_sampler.draw_by_weight(weight_N, key, prompts)
        return dataclasses.replace(state, step=state.step + 1), ids_P

    def update(state, ids_P, correct_PG, valid_PG):
        right_P, valid_P = _counts(correct_PG, valid_PG)
        return PassRates(
            step=state.step,
            right_N=state.right_N.at[ids_P].add(right_P),
            valid_N=state.valid_N.at[ids_P].add(valid_P),
        )

    def report(state, ids_P):
        weight_N = weight(state.right_N, state.valid_N)
        return {
            "epoch": state.step / epoch_steps,
            "prioritized/weight_mean": jnp.mean(weight_N),
            "prioritized/drawn_weight": jnp.mean(weight_N[ids_P]),
            "prioritized/unseen_share": jnp.mean(state.valid_N == 0),
            "prioritized/effective_problems": prompt_sampler.effective_problems(
                weight_N
            ),
        }

    return PromptSampler(init, sample, update, report)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MoppsState:
    """A Beta posterior of each problem's pass rate."""

    step: jax.Array  # int32: steps drawn
    posterior: mopps_math.State


def mopps(
    *,
    problems: int,
    prompts: int,
    pool: int,
    target: float,
    decay: float,
    prior: float,
) -> PromptSampler:
    """MoPPS: of a random pool, those predicted nearest to `target` (arXiv:2507.04632).

    The pool holds `pool` · P problems (or all N, if they are fewer), drawn uniformly.
    """
    epoch_steps = -(-problems // prompts)
    size = min(pool * prompts, problems)

    def init():
        return MoppsState(jnp.int32(0), mopps_math.init(problems, prior=prior))

    def sample(state, key):
        pool_key, draw_key = jax.random.split(key)
        pool_Q = jax.random.permutation(pool_key, problems)[:size].astype(jnp.int32)
        ids_P = mopps_math.choose(
            state.posterior, pool_Q, draw_key, prompts=prompts, target=target
        )
        return MoppsState(state.step + 1, state.posterior), ids_P

    def update(state, ids_P, correct_PG, valid_PG):
        posterior = mopps_math.update(
            state.posterior, ids_P, correct_PG > 0, valid_PG, decay=decay, prior=prior
        )
        return MoppsState(state.step, posterior)

    def report(state, ids_P):
        alpha_N, beta_N = state.posterior.alpha_N, state.posterior.beta_N
        mean_N = alpha_N / (alpha_N + beta_N)
        return {
            "epoch": state.step / epoch_steps,
            "mopps/pass_rate": jnp.mean(mean_N),
            "mopps/drawn_pass_rate": jnp.mean(mean_N[ids_P]),
            "mopps/drawn_gap": jnp.mean(jnp.abs(mean_N[ids_P] - target)),
            "mopps/drawn_evidence": jnp.mean((alpha_N + beta_N)[ids_P]) - 2 * prior,
        }

    return PromptSampler(init, sample, update, report)
