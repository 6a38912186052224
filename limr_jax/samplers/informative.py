"""By the chance that a group has a right and a wrong response (marin #8765)."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from limr_jax.algorithms import informative as informative_math
from limr_jax.samplers import importance
from limr_jax.samplers.interface import PromptSampler, epochs
from limr_jax.samplers.weighted import draw_by_weight, effective_problems


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InformativeState:
    """What is believed of each problem's pass rate."""

    step: jax.Array  # int32: steps drawn
    posterior: informative_math.State


def informative(
    *, problems: int, prompts: int, group: int, decay: float, floor: float
) -> PromptSampler:
    """The sampler that draws by the chance that a group says anything (marin #8765).

    group: G, rollouts a problem, at least 2. decay: what a visit leaves of what was
    seen before. floor: the least weight of any problem, 0 to 1. An epoch is
    ceil(N / P) steps.
    """
    epoch_steps = -(-problems // prompts)
    chance = partial(informative_math.mixed_chance, group=group)
    weight = partial(informative_math.weight, group=group, floor=floor)

    def sample(state, key, earlier=None):
        ids_P = draw_by_weight(weight(state.posterior), key, prompts, earlier)
        return dataclasses.replace(state, step=state.step + 1), ids_P

    def update(state, ids_P, correct_PG, valid_PG):
        posterior = informative_math.update(
            state.posterior, ids_P, correct_PG > 0, valid_PG, decay=decay
        )
        return InformativeState(state.step, posterior)

    def report(state, ids_P):
        weight_N = weight(state.posterior)
        chance_N = chance(state.posterior.right_N, state.posterior.wrong_N)
        return {
            "epoch": epochs(state.step, epoch_steps),
            "informative/chance": jnp.mean(chance_N),
            # What share of the groups is expected to have both outcomes.
            "informative/drawn_chance": jnp.mean(chance_N[ids_P]),
            "informative/floor_share": jnp.mean(weight_N > chance_N),
            "informative/effective_problems": effective_problems(weight_N),
        }

    return PromptSampler(
        init=lambda: InformativeState(jnp.int32(0), informative_math.init(problems)),
        sample=sample,
        update=update,
        report=report,
        importance=lambda state, key: importance.of_draw_by_weight(
            weight(state.posterior), key, prompts
        ),
    )
