"""DPS as a prompt sampler: likeliest to be half solved (arXiv:2603.10887)."""

import dataclasses

import jax
import jax.numpy as jnp

from limr_jax.algorithms import dps as dps_math
from limr_jax.samplers.interface import PromptSampler, epochs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DpsState:
    """A hidden Markov model of each problem."""

    step: jax.Array  # int32: steps drawn
    learned: dps_math.State


def dps(*, problems: int, prompts: int, decay: float, prior: float) -> PromptSampler:
    """The sampler of DPS (arXiv:2603.10887): a hidden Markov model a problem.

    It draws the P problems that are likeliest to have right and wrong responses. decay
    and prior: as in `algorithms.dps.update`. An epoch is ceil(N / P) steps.
    """
    epoch_steps = -(-problems // prompts)

    def sample(state, key, earlier=None):
        ids_P = dps_math.choose(
            state.learned,
            key,
            prompts=prompts,
            drawn_N=earlier and earlier.drawn_N,
        )
        return DpsState(state.step + 1, state.learned), ids_P.astype(jnp.int32)

    def update(state, ids_P, correct_PG, valid_PG):
        learned = dps_math.update(
            state.learned, ids_P, correct_PG > 0, valid_PG, decay=decay, prior=prior
        )
        return DpsState(state.step, learned)

    def report(state, ids_P):
        none_N, between_N, all_N = jnp.unstack(state.learned.next_N3, axis=1)
        return {
            "epoch": epochs(state.step, epoch_steps),
            "dps/none_right": jnp.mean(none_N),
            "dps/between": jnp.mean(between_N),
            "dps/all_right": jnp.mean(all_N),
            "dps/drawn_between": jnp.mean(between_N[ids_P]),
        }

    return PromptSampler(
        init=lambda: DpsState(jnp.int32(0), dps_math.init(problems, prior=prior)),
        sample=sample,
        update=update,
        report=report,
    )
