"""Curricula as prompt samplers: by level, and AdaRFT. What is hard is given beforehand.

The formulas are in `algorithms/curriculum.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from limr_jax import prompt_sampler
from limr_jax.algorithms import curriculum
from limr_jax.prompt_sampler import Order, PromptSampler


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ByLevel:
    """Where the curriculum is."""

    order: Order  # of the steps before the minimum holds
    step: jax.Array  # int32: steps drawn
    level_N: jax.Array  # fp32; below 0: unknown


def by_level(
    *, level_N, problems: int, prompts: int, key, start: int, minimum: float
) -> PromptSampler:
    """The first `start` steps as `uniform`, then problems of `minimum` level or more.

    Those are drawn at random, P different ones a step. Rewards change nothing.
    """
    epoch_steps = -(-problems // prompts)

    def init():
        order = prompt_sampler.first_order(key, problems)
        return ByLevel(order, jnp.int32(0), jnp.asarray(level_N, jnp.float32))

    def weights(state, step):
        return curriculum.level_weight(
            state.level_N, step, start=start, minimum=minimum
        )

    def in_order(state, key):
        return prompt_sampler.draw_in_order(state.order, key, prompts)

    def later(state, key):
        weight_N = weights(state, state.step)
        return state.order, prompt_sampler.draw_by_weight(weight_N, key, prompts)

    def sample(state, key):
        order, ids_P = jax.lax.cond(state.step < start, in_order, later, state, key)
        return ByLevel(order, state.step + 1, state.level_N), ids_P

    def report(state, ids_P):
        since_start = jnp.maximum(state.step - start, 0)
        return {
            "epoch": state.order.epoch
            + state.order.position / problems
            + since_start / epoch_steps,
            "curriculum/drawn_level": jnp.mean(state.level_N[ids_P]),
            "curriculum/eligible_share": jnp.mean(weights(state, state.step - 1)),
        }

    return PromptSampler(
        init=init,
        sample=sample,
        update=lambda state, ids_P, reward_PG, valid_PG: state,
        report=report,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdarftState:
    """How hard the next batch is to be."""

    step: jax.Array  # int32: steps drawn
    target: jax.Array  # fp32: T, in units of the difficulties
    difficulty_N: jax.Array  # fp32, 0 to 100


def adarft(
    *, difficulty_N, prompts: int, target: float, beta: float, alpha: float, eta: float
) -> PromptSampler:
    """AdaRFT: the P problems nearest in difficulty to a target that follows the reward.

    Difficulties, `target` (the first one) and `eta` are in the units of 0 to 100. The
    reward is the mean correctness of the step's valid rollouts; a step without any
    leaves the target. Departure: the paper's is the reward that is learned from.
    """
    problems = len(difficulty_N)
    epoch_steps = -(-problems // prompts)

    def sample(state, key):
        ids_P = curriculum.nearest(
            state.difficulty_N, state.target, key, prompts=prompts
        )
        state = dataclasses.replace(state, step=state.step + 1)
        return state, ids_P.astype(jnp.int32)

    def update(state, ids_P, correct_PG, valid_PG):
        count = jnp.sum(valid_PG)
        total = jnp.sum(jnp.where(valid_PG, correct_PG, 0.0))
        adapted = curriculum.adapt(
            state.target, total / jnp.maximum(count, 1), beta=beta, alpha=alpha, eta=eta
        )
        target = jnp.where(count > 0, adapted, state.target)
        return dataclasses.replace(state, target=target)

    def report(state, ids_P):
        drawn_P = state.difficulty_N[ids_P]
        return {
            "epoch": state.step / epoch_steps,
            "adarft/target": state.target,
            "adarft/drawn_difficulty": jnp.mean(drawn_P),
            "adarft/drawn_gap": jnp.mean(jnp.abs(drawn_P - state.target)),
        }

    return PromptSampler(
        init=lambda: AdarftState(
            step=jnp.int32(0),
            target=jnp.float32(target),
            difficulty_N=jnp.asarray(difficulty_N, jnp.float32),
        ),
        sample=sample,
        update=update,
        report=report,
    )
