"""A curriculum by level as a prompt sampler; a column of the data set has the levels.

The formula is in `algorithms/curriculum.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from limr_jax.algorithms import curriculum
from limr_jax.samplers.interface import PromptSampler, epochs
from limr_jax.samplers.order import Order, draw_in_order, first_order
from limr_jax.samplers.weighted import draw_by_weight


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
    """The sampler that draws hard problems alone from step `start` on.

    level_N: of each problem, fp32; below 0 where it is unknown. The first `start` steps
    draw as `uniform` does, with `key` for the first order; later ones draw P different
    problems of level `minimum` or more at random. Rewards change nothing.
    """
    epoch_steps = -(-problems // prompts)

    def init():
        order = first_order(key, problems)
        return ByLevel(order, jnp.int32(0), jnp.asarray(level_N, jnp.float32))

    def weights(state, step):
        return curriculum.level_weight(
            state.level_N, step, start=start, minimum=minimum
        )

    def sample(state, key, earlier=None):
        def in_order(state, key):
            return draw_in_order(state.order, key, prompts, earlier)

        def later(state, key):
            # from_config.py sees to it that enough weigh 1: none of weight 0 is drawn.
            weight_N = weights(state, state.step)
            return state.order, draw_by_weight(weight_N, key, prompts, earlier)

        order, ids_P = jax.lax.cond(state.step < start, in_order, later, state, key)
        return ByLevel(order, state.step + 1, state.level_N), ids_P

    def report(state, ids_P):
        since_start = jnp.maximum(state.step - start, 0)
        return {
            "epoch": state.order.epoch
            + state.order.position / problems
            + epochs(since_start, epoch_steps),
            "curriculum/drawn_level": jnp.mean(state.level_N[ids_P]),
            # `sample` has counted this step already: its weights were those before.
            "curriculum/eligible_share": jnp.mean(weights(state, state.step - 1)),
        }

    return PromptSampler(
        init=init,
        sample=sample,
        update=lambda state, ids_P, correct_PG, valid_PG: state,
        report=report,
    )
