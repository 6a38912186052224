"""AdaRFT as a prompt sampler: nearest to a moving target (arXiv:2504.05520)."""

import dataclasses

import jax
import jax.numpy as jnp

from limr_jax.algorithms import curriculum
from limr_jax.samplers.interface import PromptSampler, epochs


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
    """The sampler of AdaRFT (arXiv:2504.05520): a target difficulty follows the reward.

    It draws the P problems nearest in difficulty to the target. difficulty_N, `target`
    (the first one) and `eta` are in the units of 0 to 100; `beta` and `alpha` are as in
    `algorithms.curriculum.adapt`. The reward is the mean correctness of the step's
    valid rollouts; a step without any leaves the target. Departure: the paper's is the
    reward that is learned from.
    """
    problems = len(difficulty_N)
    # No order is walked: an epoch is counted in steps.
    epoch_steps = -(-problems // prompts)

    def sample(state, key, earlier=None):
        ids_P = curriculum.nearest(
            state.difficulty_N,
            state.target,
            key,
            prompts=prompts,
            drawn_N=earlier and earlier.drawn_N,
        )
        state = dataclasses.replace(state, step=state.step + 1)
        return state, ids_P.astype(jnp.int32)

    def update(state, ids_P, correct_PG, valid_PG):
        count = jnp.sum(valid_PG)
        total = jnp.sum(jnp.where(valid_PG, correct_PG, 0.0))
        adapted = curriculum.adapt(
            state.target, total / jnp.maximum(count, 1), beta=beta, alpha=alpha, eta=eta
        )
        # A step without a valid rollout says nothing of the policy.
        target = jnp.where(count > 0, adapted, state.target)
        return dataclasses.replace(state, target=target)

    def report(state, ids_P):
        drawn_P = state.difficulty_N[ids_P]
        return {
            "epoch": epochs(state.step, epoch_steps),
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
