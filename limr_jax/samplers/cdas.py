"""CDAS as a prompt sampler: as hard as the policy is able (arXiv:2505.17652)."""

import dataclasses

import jax
import jax.numpy as jnp

from limr_jax.algorithms import cdas as cdas_math
from limr_jax.samplers.interface import PromptSampler, count_right, epochs
from limr_jax.samplers.order import Order, draw_in_order, first_order


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CdasState:
    """Difficulties and competence, and the order of the first epoch."""

    order: Order  # of the first epoch
    step: jax.Array  # int32: steps drawn
    learned: cdas_math.State


def cdas(*, problems: int, prompts: int, key, initial_count: float) -> PromptSampler:
    """The sampler of CDAS: problems as hard as the policy is able (arXiv:2505.17652).

    The first epoch visits every problem once; `key` is that of its order.
    `initial_count`, what the starting difficulty weighs, is 0 with the paper's weights
    and 1 with its code's.
    """
    # An epoch is as many steps later on, where no order is walked.
    first_epoch = -(-problems // prompts)

    def init():
        order = first_order(key, problems)
        return CdasState(order, jnp.int32(0), cdas_math.init(problems))

    def sample(state, key, earlier=None):
        def in_order(state, key):
            return draw_in_order(state.order, key, prompts, earlier)

        def aligned(state, key):
            drawn_N = earlier and earlier.drawn_N
            ids_P = cdas_math.choose(
                state.learned, key, prompts=prompts, drawn_N=drawn_N
            )
            # Both branches give an order; this one leaves it as it is.
            return state.order, ids_P.astype(jnp.int32)

        order, ids_P = jax.lax.cond(
            state.step < first_epoch, in_order, aligned, state, key
        )
        return CdasState(order, state.step + 1, state.learned), ids_P

    def update(state, ids_P, correct_PG, valid_PG):
        right_P, valid_P = count_right(correct_PG, valid_PG)
        learned = cdas_math.update(
            state.learned,
            ids_P,
            # 0 where nothing was valid, which `update` is told by the next argument.
            right_P / jnp.maximum(valid_P, 1),
            valid_P > 0,
            initial_count=initial_count,
        )
        return dataclasses.replace(state, learned=learned)

    def report(state, ids_P):
        learned = state.learned
        gap_P = learned.difficulty_N[ids_P] - learned.competence
        return {
            "epoch": epochs(state.step, first_epoch),
            "cdas/competence": learned.competence,
            "cdas/drawn_difficulty": jnp.mean(learned.difficulty_N[ids_P]),
            "cdas/drawn_gap": jnp.mean(jnp.abs(gap_P)),
            # Easy as `choose` has it: D ≤ C.
            "cdas/drawn_easy_share": jnp.mean(gap_P <= 0),
            "cdas/unseen_share": jnp.mean(learned.visits_N == 0),
        }

    return PromptSampler(init, sample, update, report)
