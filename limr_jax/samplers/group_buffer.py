"""Groups on their way into a batch: over the rounds of a step, and into the next step.

A batch holds P groups. The groups that a round adds are merged with those of the
buffer, the oldest first, and a step goes on with another round until P are kept, or the
bound is reached. A round adds P at most, so fewer than P groups are over in the end:
those wait for the next step, which takes them first, so that none waits longer than one
step. Places that are still empty at the bound become invalid rows: the learner sees a
smaller batch. The rule is DAPO's (arXiv:2503.14476).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from limr_jax.rewards.stats import mean


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupBuffer:
    """P places for groups of G rollouts."""

    groups: Any  # (PromptBatch, Rollout, Graded): arrays of P, or P · G, rows
    born_P: jax.Array  # int32: the step in which the group was written
    kept_P: jax.Array  # bool; False: the place is empty, whatever the arrays hold


def without_round_fields(drawn, rollout, graded):
    """A round's PromptBatch, Rollout and Graded without what is of the round alone.

    That is expected lengths, steps of the slots, parts of the reward, and reasons.
    """
    drawn = dataclasses.replace(drawn, expected_P=None)
    rollout = dataclasses.replace(
        rollout, slot_steps_M=None, steps_M=None, row_steps_M=None
    )
    return drawn, rollout, dataclasses.replace(graded, parts={}, reason_PG=None)


def empty(drawn, rollout, graded) -> GroupBuffer:
    """A buffer with P empty places; the arguments, or their shapes, are of a round."""
    groups = without_round_fields(drawn, rollout, graded)
    return GroupBuffer(
        groups=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), groups),
        born_P=jnp.zeros(drawn.ids_P.shape, jnp.int32),
        kept_P=jnp.zeros(drawn.ids_P.shape, bool),
    )


def add_round(before: GroupBuffer, drawn, rollout, graded) -> GroupBuffer:
    """A step's groups with the rollouts that one more round has written of them.

    before: the groups so far, of the same problems; no rollout is in two rounds.
    `taken_PG` of the grades is left as it was.
    """
    old_drawn, old_rollout, old_graded = before.groups
    drawn, rollout, graded = without_round_fields(drawn, rollout, graded)
    asked_PG = drawn.asked_PG

    def of_groups(new_PG, old_PG):
        return jnp.where(asked_PG, new_PG, old_PG)

    def of_rollouts(new_BX, old_BX):
        flag_BX = asked_PG.reshape(-1, *(1,) * (new_BX.ndim - 1))
        return jnp.where(flag_BX, new_BX, old_BX)

    # Prompts have P rows where all else of a Rollout has P · G, so flags of rollouts do
    # not fit them; and they are the same in every round.
    def without_prompts(rollout):
        return dataclasses.replace(rollout, prompt_PL=None, position_PL=None)

    rows = jax.tree.map(
        of_rollouts, without_prompts(rollout), without_prompts(old_rollout)
    )
    # A round's grades say nothing of what is taken, and only like trees can be mapped.
    taken_PG = old_graded.taken_PG
    graded = jax.tree.map(
        of_groups, graded, dataclasses.replace(old_graded, taken_PG=None)
    )
    groups = (
        dataclasses.replace(drawn, asked_PG=asked_PG | old_drawn.asked_PG),
        dataclasses.replace(
            rows, prompt_PL=rollout.prompt_PL, position_PL=rollout.position_PL
        ),
        dataclasses.replace(graded, taken_PG=taken_PG),
    )
    return dataclasses.replace(before, groups=groups)


def merge(
    waiting: GroupBuffer, new: GroupBuffer, step, *, max_age: int
) -> tuple[GroupBuffer, GroupBuffer]:
    """The batch so far and the surplus, of the groups that wait and those of a round.

    step: the number of this step. A group written more than `max_age` steps ago is
    dropped; the others fill the batch in the order of their age, then of their place.
    """
    places = len(waiting.kept_P)
    born_X = jnp.concatenate([waiting.born_P, new.born_P])  # X = 2P places
    kept_X = jnp.concatenate([waiting.kept_P, new.kept_P]) & (step - born_X <= max_age)
    # Stable: what waits stands before what is new, and is taken first.
    order_X = jnp.argsort(~kept_X, stable=True)

    def take(order_P):
        def take_rows(waiting_x, new_x):
            # [P · G, …] → [P, G, …], so that a group moves as one; [P, …] → [P, 1, …].
            by_place = [x.reshape(places, -1, *x.shape[1:]) for x in (waiting_x, new_x)]
            return jnp.concatenate(by_place)[order_P].reshape(waiting_x.shape)

        groups = jax.tree.map(take_rows, waiting.groups, new.groups)
        return GroupBuffer(groups, born_X[order_P], kept_X[order_P])

    return take(order_X[:places]), take(order_X[places:])


def collect(
    waiting: GroupBuffer,
    step,
    drawn,
    rollout,
    graded,
    *,
    keep: Callable,
    max_age: int,
) -> tuple[GroupBuffer, GroupBuffer, jax.Array, dict]:
    """The batch so far, the surplus, whether it is whole, and metrics, after a round.

    It is `merge` of the groups that wait and those of the round that are kept: keep is
    a function (correct_PG, valid_PG) → keep_P. Rollouts in empty places of the batch
    are invalid. Metrics count groups, rollouts, tokens and steps.
    """
    keep_P = keep(graded.correct_PG, graded.valid_PG)
    born_P = jnp.full_like(waiting.born_P, step)
    new = GroupBuffer(without_round_fields(drawn, rollout, graded), born_P, keep_P)
    batch, surplus = merge(waiting, new, step, max_age=max_age)
    drawn, rollout, graded = batch.groups
    # An empty place still holds arrays, of a group that was not kept, say.
    valid_PG = graded.valid_PG & batch.kept_P[:, None]
    graded = dataclasses.replace(graded, valid_PG=valid_PG)
    # Empty places have tokens and ages, too: only those that are kept count.
    groups, age_P = jnp.sum(batch.kept_P), step - batch.born_P
    length_P = jnp.sum(rollout.mask_BT.reshape(len(age_P), -1), axis=1)
    written_P = jnp.full(len(age_P), rollout.group)
    if drawn.asked_PG is not None:
        written_P = jnp.sum(drawn.asked_PG, axis=1)
    return (
        dataclasses.replace(batch, groups=(drawn, rollout, graded)),
        surplus,
        jnp.all(batch.kept_P),
        {
            "dynamic/used_groups": groups,
            "dynamic/used_rollouts": jnp.sum(jnp.where(batch.kept_P, written_P, 0)),
            "dynamic/used_tokens": jnp.sum(jnp.where(batch.kept_P, length_P, 0)),
            "dynamic/used_pass_rate": mean(graded.correct_PG, where=valid_PG),
            "dynamic/carried_groups": jnp.sum(batch.kept_P & (age_P > 0)),
            "dynamic/age_mean": mean(age_P, where=batch.kept_P),
            "dynamic/age_max": jnp.max(jnp.where(batch.kept_P, age_P, 0)),
            "dynamic/surplus_groups": jnp.sum(surplus.kept_P),
        },
    )
