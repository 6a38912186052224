"""BOTS as a prompt sampler: MoPPS, and evidence of its batch (arXiv:2510.26374)."""

from limr_jax.algorithms import bots as bots_math
from limr_jax.samplers.interface import PromptSampler
from limr_jax.samplers.mopps import MoppsState, mopps


def bots(
    *,
    problems: int,
    prompts: int,
    pool: int,
    target: float,
    decay: float,
    prior: float,
    rho: float,
) -> PromptSampler:
    """The sampler of BOTS (arXiv:2510.26374): what a batch says of all other problems.

    It draws as MoPPS does, from a pool of `pool` · P problems; 0: of all. decay, prior
    and rho: as in `algorithms.bots.update`; at rho = 0 it is MoPPS, to the last bit.
    """
    drawing = mopps(
        problems=problems,
        prompts=prompts,
        pool=pool or -(-problems // prompts),
        target=target,
        decay=decay,
        prior=prior,
    )

    def update(state, ids_P, correct_PG, valid_PG):
        posterior = bots_math.update(
            state.posterior,
            ids_P,
            correct_PG > 0,
            valid_PG,
            decay=decay,
            prior=prior,
            rho=rho,
        )
        return MoppsState(state.step, posterior)

    def report(state, ids_P):
        numbers = drawing.report(state, ids_P)
        return {name.replace("mopps/", "bots/"): x for name, x in numbers.items()}

    return drawing._replace(update=update, report=report)
