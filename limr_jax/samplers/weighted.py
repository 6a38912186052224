"""Draws by weight; and by weights that stay as they were given."""

import dataclasses

import jax
import jax.numpy as jnp

from limr_jax.samplers.interface import Earlier, PromptSampler, epochs


def log_weight(weight_N: jax.Array) -> jax.Array:
    """The logarithm of weights, finite for a weight of 0, which counts as 1e-30.

    So problems of weight 0 are drawn when all others are, and then by chance: at −inf
    all would tie, and top_k would go by index.
    """
    return jnp.log(jnp.maximum(weight_N, 1e-30))


def draw_by_weight(
    weight_N: jax.Array, key, prompts: int, earlier: Earlier | None = None
) -> jax.Array:
    """ids_P of P different problems, drawn by weight without replacement.

    It is the Gumbel top-k of the log weights (arXiv:1903.06059). What a step's earlier
    rounds have drawn is not drawn again: as the key is theirs, the rounds are one draw
    without replacement, made in parts.
    """
    # One top-k in place of P draws one after another, each without what is drawn.
    noise_N = jax.random.gumbel(key, weight_N.shape)
    value_N = log_weight(weight_N) + noise_N
    if earlier is not None:
        value_N = jnp.where(earlier.drawn_N, -jnp.inf, value_N)
    _, ids_P = jax.lax.top_k(value_N, prompts)
    return ids_P.astype(jnp.int32)


def effective_problems(weight_N: jax.Array) -> jax.Array:
    """The number of equally weighted problems that would be as varied: 1 / Σ share²."""
    share_N = jax.nn.softmax(log_weight(weight_N))
    return 1 / jnp.sum(share_N**2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weighted:
    """Weights that stay as they were given."""

    step: jax.Array  # int32: steps drawn
    weight_N: jax.Array  # fp32


def weighted(*, weight_N, prompts: int) -> PromptSampler:
    """The sampler that draws by fixed weights from the first step on.

    weight_N: fp32, not negative; of published LIM scores, say. Rewards change nothing.
    An epoch is ceil(N / P) steps.
    """
    problems = weight_N.shape[0]
    steps_per_epoch = -(-problems // prompts)

    def sample(state, key, earlier=None):
        ids_P = draw_by_weight(state.weight_N, key, prompts, earlier)
        return dataclasses.replace(state, step=state.step + 1), ids_P

    def report(state, ids_P):
        return {
            "epoch": epochs(state.step, steps_per_epoch),
            "lim/kept_share": jnp.mean(state.weight_N >= 1),
            "lim/drawn_kept_share": jnp.mean(state.weight_N[ids_P] >= 1),
        }

    return PromptSampler(
        init=lambda: Weighted(jnp.int32(0), jnp.asarray(weight_N, jnp.float32)),
        sample=sample,
        update=lambda state, ids_P, correct_PG, valid_PG: state,
        report=report,
    )
