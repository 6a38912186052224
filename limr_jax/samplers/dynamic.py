"""Dynamic sampling as a prompt sampler: DAPO's rounds (arXiv:2503.14476).

A step draws P problems a round until enough of their groups have a right and a wrong
response (`keep`), or the bound is reached. The problems of all rounds of a step are
different, whatever epoch they are of; each comes once an epoch. Groups that are kept
beyond P wait for the next step: see group_buffer.py.
"""

import dataclasses

import jax
import jax.numpy as jnp

from limr_jax.algorithms import dynamic_sampling
from limr_jax.samplers.interface import PromptSampler
from limr_jax.samplers.order import Order, draw_next, first_order, look_ahead


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DynamicState:
    """The order of the problems, and the rounds of the step that is going on."""

    order: Order
    rounds: jax.Array  # int32: rounds that this step has drawn; 0 between steps


def dynamic(*, problems: int, prompts: int, key, max_rounds: int) -> PromptSampler:
    """The sampler of DAPO's dynamic sampling (arXiv:2503.14476).

    It draws as `uniform` does, up to `max_rounds` times a step, and keeps the groups
    with a right and a wrong response. max_rounds · P ≤ N, the number of problems. key:
    of the first epoch's order.
    """

    def sample(state, key):
        # A step's first round sees to it that no round meets a problem again.
        order = jax.lax.cond(
            state.rounds == 0,
            lambda order: look_ahead(order, key, max_rounds * prompts),
            lambda order: order,
            state.order,
        )
        order, ids_P = draw_next(order, prompts)
        return DynamicState(order, state.rounds + 1), ids_P

    def update(state, ids_P, correct_PG, valid_PG):
        # The step is over: the next draw is the first round of another.
        return DynamicState(state.order, jnp.int32(0))

    def keep(state, correct_PG, valid_PG):
        # Correctness is 0 to 1: all above 0 is right.
        return dynamic_sampling.keep(correct_PG > 0, valid_PG)

    def report(state, ids_P):
        return {
            "epoch": state.order.epoch + state.order.position / problems,
            "dynamic/rounds": state.rounds,
        }

    return PromptSampler(
        init=lambda: DynamicState(first_order(key, problems), jnp.int32(0)),
        sample=sample,
        update=update,
        report=report,
        keep=keep,
    )
