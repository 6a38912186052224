"""What an update learns from: a step's rollouts, and rows of them as models read them.

The learner gives each token its weight (`weigh`): its share of an update's loss, with
the normaliser of *all* rows of that update in it. So micro-batches, devices and hosts
only add up.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from limr_jax.learner.packing import Layout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """A step's rollouts: B of them, S = L + T columns, the last T of them predicted."""

    tokens_BS: jax.Array  # int32
    position_BS: jax.Array  # int32, -1 = padding
    problem_B: jax.Array  # int32: rows of one problem have the same prompt
    mask_BT: jax.Array  # bool: predicted tokens that are learned
    problem_weight_B: jax.Array | None = None  # fp32, of a row's loss; None: all 1
    # int32, learned rows of the row's problem, where problems weigh alike; None: where
    # rows do.
    problem_rows_B: jax.Array | None = None
    # fp32: each token's share of an update's loss; None: `weigh` has yet to say.
    weight_BT: jax.Array | None = None
    # int32: what is predicted, where it is not the last T of tokens_BS.
    target_BT: jax.Array | None = None
    advantage_BT: jax.Array | None = None  # fp32
    # fp32, of the policy before the step, which ratios are to: as the rollout had it,
    # or as the learner has it, and then the rollout's own are beside it.
    old_logprob_BT: jax.Array | None = None
    sampler_logprob_BT: jax.Array | None = None
    reference_BT: jax.Array | None = None  # fp32, of the reference; None without KL
    old_value_BT: jax.Array | None = None  # fp32, of the critic before the step
    return_BT: jax.Array | None = None  # fp32: the critic's targets
    keep_B: jax.Array | None = None  # bool: rows that the filter keeps; None: all
    answer_BT: jax.Array | None = None  # bool: tokens of JEPO's reference answers
    answer_weight_BT: jax.Array | None = None  # fp32, of their log-probabilities

    @property
    def chosen_BT(self) -> jax.Array:
        """bool: the learned tokens that the policy wrote: not JEPO's answers."""
        if self.answer_BT is None:
            return self.mask_BT
        return self.mask_BT & ~self.answer_BT


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """R rows of W columns, each of one text or several, with Y predicted tokens a row.

    The fields are those of `Batch`, packed.
    """

    tokens_RW: jax.Array  # int32
    position_RW: jax.Array  # int32, -1 = padding
    mask_RY: jax.Array  # bool: predicted tokens that are learned
    weight_RY: jax.Array  # fp32: each one's share of an update's loss
    segment_RW: jax.Array | None = None  # int32: which text; None: one a row
    layout: Layout | None = None  # what is predicted; None: the last Y columns
    advantage_RY: jax.Array | None = None
    old_logprob_RY: jax.Array | None = None
    sampler_logprob_RY: jax.Array | None = None
    reference_RY: jax.Array | None = None
    old_value_RY: jax.Array | None = None
    return_RY: jax.Array | None = None
    answer_RY: jax.Array | None = None
    answer_weight_RY: jax.Array | None = None

    @property
    def chosen_RY(self) -> jax.Array:
        """bool: the learned tokens that the policy wrote: not JEPO's answers."""
        if self.answer_RY is None:
            return self.mask_RY
        return self.mask_RY & ~self.answer_RY


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scores:
    """What reference, critic and policy say of a step's rollouts before the update."""

    reference_BT: jax.Array | None = None  # fp32 log-probability; None without KL
    value_BT: jax.Array | None = None  # fp32; None without a critic
    # fp32 log-probability of the policy itself; None: the rollout's own are taken
    old_BT: jax.Array | None = None
    thoughts: Any = None  # jepo.Thoughts, scored; None without JEPO


def _per_token(mask_BT):
    """Normaliser "token": every learned token of the rows weighs the same."""
    return mask_BT / jnp.maximum(jnp.sum(mask_BT), 1)


def _per_sequence(mask_BT):
    """Normaliser "sequence": every rollout weighs the same, and its tokens do too."""
    length_B1 = jnp.maximum(jnp.sum(mask_BT, axis=1, keepdims=True), 1)
    # A row's weights sum to 1 / rollouts, whatever its length.
    return mask_BT / (length_B1 * _rollouts(mask_BT))


def _constant(mask_BT):
    """Normaliser "constant": 1 / (rollouts × the longest response allowed) a token."""
    return mask_BT / (_rollouts(mask_BT) * float(mask_BT.shape[1]))


def _per_rollout(mask_BT):
    """Normaliser "rollout": a rollout's sum over its tokens weighs as any other's."""
    return mask_BT / _rollouts(mask_BT)


def _rollouts(mask_BT):
    """The number of rows of which something is learned; 1 where there is none.

    An invalid row, or a place that dynamic sampling leaves empty, makes no step small.
    """
    return jnp.maximum(jnp.sum(jnp.any(mask_BT, axis=1)), 1)


# mask_BT, of the tokens that are learned → weight_BT.
NORMALISERS = {
    "token": _per_token,
    "sequence": _per_sequence,
    "constant": _constant,
    "rollout": _per_rollout,
}


def learned_rows(mask_BT, group: int):
    """How many rows of each row's problem are learned: int32 problem_rows_B.

    mask_BT: the tokens that are learned, of rows of which `group` in turn are of one
    problem.
    """
    learned_PG = jnp.any(mask_BT, axis=1).reshape(-1, group)
    return jnp.repeat(jnp.sum(learned_PG, axis=1, dtype=jnp.int32), group)


def problems_of_one_weight(mask_BT, problem_rows_B):
    """What rows are multiplied by so that problems weigh alike: fp32 weight_B.

    mask_BT: the tokens that are learned, of the rows of one update. A problem of n
    learned rows in the step, `problem_rows_B`, has weights in proportion to 1 / n. The
    weights of an update's learned rows have a mean of 1, so that a mean over rollouts
    stays one, whichever problems the update has.
    """
    share_B = 1 / jnp.maximum(problem_rows_B, 1)
    learned_B = jnp.any(mask_BT, axis=1)
    shares = jnp.sum(jnp.where(learned_B, share_B, 0))
    return share_B * jnp.sum(learned_B) / jnp.where(shares > 0, shares, 1)


def weigh(batch: Batch, name: str) -> Batch:
    """The batch of one update with `weight_BT`, each token's share of the loss.

    name: one of NORMALISERS. Rows that the filter drops count in the normaliser, but
    with filter.normaliser=kept.
    """
    # Of mask_BT, not keep_B: with filter.normaliser=all a dropped row changes no
    # other's weight.
    weight_BT = NORMALISERS[name](batch.mask_BT)
    if batch.problem_rows_B is not None:
        alike_B = problems_of_one_weight(batch.mask_BT, batch.problem_rows_B)
        weight_BT = weight_BT * alike_B[:, None]
    # After the normaliser, which counts rows: a weight is no part of a denominator.
    if batch.problem_weight_B is not None:
        weight_BT = weight_BT * batch.problem_weight_B[:, None]
    return dataclasses.replace(batch, weight_BT=weight_BT)
