"""Groups on their way into a batch: over the rounds of a step, and into the next step.

A batch holds P groups. What a round adds is merged with what is there, the oldest
first, and a step goes on with another round until P are kept, or the bound is reached.
A round adds P at most, so fewer than P are over in the end: those wait for the next
step, which takes them first, so that none waits longer than one step. Places that are
still empty at the bound become invalid rows: the learner sees a smaller batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pool:
    """P places for groups."""

    groups: Any  # arrays of P, or P · G, rows: what was drawn, written and graded
    born_P: jax.Array  # int32: the step in which the group was written
    kept_P: jax.Array  # bool; False: the place is empty, whatever the arrays hold


def lasting(drawn, written, graded):
    """All but what is of a round: what was expected, parts of rewards, the slots."""
    drawn = dataclasses.replace(drawn, expected_P=None)
    written = dataclasses.replace(written, slot_steps_D=None)
    return drawn, written, dataclasses.replace(graded, parts={})


def empty(drawn, written, graded) -> Pool:
    """P empty places for groups of a round of these shapes."""
    groups = lasting(drawn, written, graded)
    return Pool(
        groups=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), groups),
        born_P=jnp.zeros(drawn.ids_P.shape, jnp.int32),
        kept_P=jnp.zeros(drawn.ids_P.shape, bool),
    )


def merge(waiting: Pool, new: Pool, step, *, max_age: int) -> tuple[Pool, Pool]:
    """(the batch so far, what is over) of the groups that wait and those of a round.

    A group written more than `max_age` steps ago is dropped.
    """
    places = len(waiting.kept_P)
    born_X = jnp.concatenate([waiting.born_P, new.born_P])  # X = 2P places
    kept_X = jnp.concatenate([waiting.kept_P, new.kept_P]) & (step - born_X <= max_age)
    order_X = jnp.argsort(~kept_X, stable=True)

    def take(order_P):
        def rows(a, b):
            by_place = [x.reshape(places, -1, *x.shape[1:]) for x in (a, b)]
            return jnp.concatenate(by_place)[order_P].reshape(a.shape)

        groups = jax.tree.map(rows, waiting.groups, new.groups)
        return Pool(groups, born_X[order_P], kept_X[order_P])

    return take(order_X[:places]), take(order_X[places:])


def collect(
    waiting: Pool,
    sampler_state,
    step,
    drawn,
    written,
    graded,
    *,
    keep: Callable,
    max_age: int,
) -> tuple[Pool, Pool, dict]:
    """`merge` of what waits and what `keep` keeps of a round; and the batch's metrics.

    keep: of the sampler, (state, correct_PG, valid_PG) → keep_P. Rows of empty places
    are invalid.
    """
    keep_P = keep(sampler_state, graded.correct_PG, graded.valid_PG)
    born_P = jnp.full_like(waiting.born_P, step)
    new = Pool(lasting(drawn, written, graded), born_P, keep_P)
    batch, surplus = merge(waiting, new, step, max_age=max_age)
    drawn, written, graded = batch.groups
    valid_PG = graded.valid_PG & batch.kept_P[:, None]
    graded = dataclasses.replace(graded, valid_PG=valid_PG)
    groups, age_P = jnp.sum(batch.kept_P), step - batch.born_P
    length_P = jnp.sum(written.mask_BT.reshape(len(age_P), -1), axis=1)
    return (
        dataclasses.replace(batch, groups=(drawn, written, graded)),
        surplus,
        {
            "dynamic/used_groups": groups,
            "dynamic/used_rollouts": groups * written.group,
            "dynamic/used_tokens": jnp.sum(jnp.where(batch.kept_P, length_P, 0)),
            "dynamic/used_pass_rate": jnp.mean(graded.correct_PG, where=valid_PG),
            "dynamic/carried_groups": jnp.sum(batch.kept_P & (age_P > 0)),
            "dynamic/age_mean": jnp.mean(age_P, where=batch.kept_P),
            "dynamic/age_max": jnp.max(jnp.where(batch.kept_P, age_P, 0)),
            "dynamic/surplus_groups": jnp.sum(surplus.kept_P),
        },
    )
