"""Prioritized sampling: by 1 - pass rate so far (Kimi k1.5, arXiv:2501.12599)."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from limr_jax.algorithms import prioritized as prioritized_math
from limr_jax.samplers import importance
from limr_jax.samplers.interface import PromptSampler, count_right, epochs
from limr_jax.samplers.weighted import draw_by_weight, effective_problems


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PassRates:
    """What each problem's rollouts were, over all visits."""

    step: jax.Array  # int32: steps drawn
    right_N: jax.Array  # fp32: right responses
    valid_N: jax.Array  # fp32: valid responses


def prioritized(*, problems: int, prompts: int, floor: float) -> PromptSampler:
    """The sampler that draws by 1 − pass rate so far (Kimi k1.5, arXiv:2501.12599).

    A problem's weight is never below `floor`, 0 to 1. An epoch is ceil(N / P) steps.
    """
    epoch_steps = -(-problems // prompts)
    weight = partial(prioritized_math.weight, floor=floor)

    def init():
        zeros_N = jnp.zeros((problems,), jnp.float32)
        return PassRates(jnp.int32(0), zeros_N, zeros_N)

    def sample(state, key, earlier=None):
        weight_N = weight(state.right_N, state.valid_N)
        ids_P = draw_by_weight(weight_N, key, prompts, earlier)
        return dataclasses.replace(state, step=state.step + 1), ids_P

    def update(state, ids_P, correct_PG, valid_PG):
        right_P, valid_P = count_right(correct_PG, valid_PG)
        return PassRates(
            step=state.step,
            right_N=state.right_N.at[ids_P].add(right_P),
            valid_N=state.valid_N.at[ids_P].add(valid_P),
        )

    def report(state, ids_P):
        weight_N = weight(state.right_N, state.valid_N)
        return {
            "epoch": epochs(state.step, epoch_steps),
            "prioritized/weight_mean": jnp.mean(weight_N),
            "prioritized/drawn_weight": jnp.mean(weight_N[ids_P]),
            "prioritized/unseen_share": jnp.mean(state.valid_N == 0),
            "prioritized/effective_problems": effective_problems(weight_N),
        }

    return PromptSampler(
        init=init,
        sample=sample,
        update=update,
        report=report,
        importance=lambda state, key: importance.of_draw_by_weight(
            weight(state.right_N, state.valid_N), key, prompts
        ),
    )
