"""MoPPS as a prompt sampler: pass rates by Thompson draws (arXiv:2507.04632)."""

import dataclasses

import jax
import jax.numpy as jnp

from limr_jax.algorithms import mopps as mopps_math
from limr_jax.samplers.interface import PromptSampler, epochs


def draw_pool(key, problems: int, size: int, drawn_N=None) -> jax.Array:
    """pool_X, int32: X = `size` (≤ N) different problems at random, to choose from.

    drawn_N: bool, problems that come into it when all others are in.
    """
    # Not integers at random: a problem is in the pool, and in a step, once at most.
    order_N = jax.random.permutation(key, problems)
    if drawn_N is not None:
        order_N = order_N[jnp.argsort(drawn_N[order_N], stable=True)]
    return order_N[:size].astype(jnp.int32)


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
    """The sampler of MoPPS (arXiv:2507.04632): pass rates predicted by Thompson draws.

    Of a pool of `pool` · P problems (or all N, if they are fewer), drawn uniformly, it
    takes the P whose predicted pass rate is nearest to `target`. decay and prior: as in
    `algorithms.mopps.update`.
    """
    epoch_steps = -(-problems // prompts)
    size = min(pool * prompts, problems)

    def init():
        return MoppsState(jnp.int32(0), mopps_math.init(problems, prior=prior))

    def sample(state, key, earlier=None):
        pool_key, draw_key = jax.random.split(key)
        drawn_N = earlier and earlier.drawn_N
        ids_P = mopps_math.choose(
            state.posterior,
            draw_pool(pool_key, problems, size, drawn_N),
            draw_key,
            prompts=prompts,
            target=target,
            drawn_N=drawn_N,
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
            "epoch": epochs(state.step, epoch_steps),
            "mopps/pass_rate": jnp.mean(mean_N),
            "mopps/drawn_pass_rate": jnp.mean(mean_N[ids_P]),
            "mopps/drawn_gap": jnp.mean(jnp.abs(mean_N[ids_P] - target)),
            # Pseudo-counts without those of the prior, α_0 + β_0.
            "mopps/drawn_evidence": jnp.mean((alpha_N + beta_N)[ids_P]) - 2 * prior,
        }

    return PromptSampler(init, sample, update, report)
