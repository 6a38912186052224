"""A walk through the problems in random order, which samplers draw the next ones of.

Each problem comes exactly once an epoch, and each epoch has an order of its own. The
next one's is made in time for the batch that reaches into it.
"""

import dataclasses

import jax
import jax.numpy as jnp

from limr_jax.samplers.interface import Earlier


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Order:
    """Where the walk through N problems is; a part of a sampler's state."""

    order_2N: jax.Array  # int32: this epoch's order, and the next one's
    position: jax.Array  # int32: how much of this epoch's order is drawn
    epoch: jax.Array  # int32: epochs finished


def first_order(key, problems: int) -> Order:
    """The order of N problems in the first epoch, at random; nothing of it is drawn."""
    this = jax.random.permutation(jax.random.fold_in(key, 0), problems)
    return Order(
        order_2N=jnp.stack([this, jnp.zeros_like(this)]).astype(jnp.int32),
        position=jnp.int32(0),
        epoch=jnp.int32(0),
    )


def next_order(key, this_N: jax.Array, position, fill, ready_N=None) -> jax.Array:
    """A random order for the next epoch that can fill this one's last batch, int32 [N].

    That batch holds the last `position…N` of this order and then the first `fill`
    problems of the next one that are ready, so the former must not be among those:
    their random priorities are squeezed behind that of the last one that fills.
    """
    problems = this_N.shape[0]
    priority_N = jax.random.uniform(key, (problems,))
    in_tail_N = jnp.zeros((problems,), bool)
    in_tail_N = in_tail_N.at[this_N].set(jnp.arange(problems) >= position)
    others_N = jnp.where(in_tail_N, 2.0, priority_N)
    if ready_N is not None:
        others_N = jnp.where(ready_N, others_N, 2.0)
    behind = jnp.sort(others_N)[jnp.maximum(fill - 1, 0)]
    squeezed_N = behind + (1 - behind) * priority_N
    priority_N = jnp.where(in_tail_N & (fill > 0), squeezed_N, priority_N)
    # The tail goes behind in a tie as well.
    return jnp.lexsort((in_tail_N, priority_N)).astype(jnp.int32)


def look_ahead(state: Order, key, count: int) -> Order:
    """The order, prepared so that its next `count` draws (≤ N) are all different.

    Nothing is drawn. Where the draws reach this epoch's end, the next one's order is
    made anew for it, from `key`.
    """
    problems = state.order_2N.shape[1]

    def prepare(state):
        fill = count - (problems - state.position)
        following_N = next_order(
            jax.random.fold_in(key, 1), state.order_2N[0], state.position, fill
        )
        return state.order_2N.at[1].set(following_N)

    # The next order is sorted once an epoch, not at every step.
    ends = state.position + count >= problems
    order_2N = jax.lax.cond(ends, prepare, lambda state: state.order_2N, state)
    return dataclasses.replace(state, order_2N=order_2N)


def draw_next(state: Order, prompts: int) -> tuple[Order, jax.Array]:
    """The order after a draw, and the drawn ids_P: the next P = `prompts` problems.

    `look_ahead` must have prepared the order for so many draws.
    """
    problems = state.order_2N.shape[1]
    ends = state.position + prompts >= problems
    # Both orders in one row: a batch over the epoch's end is one slice of it.
    order_X = state.order_2N.reshape(-1)  # X = 2N
    ids_P = jax.lax.dynamic_slice(order_X, (state.position,), (prompts,))
    # At the end the next order becomes this epoch's; the other is made anew in time.
    advanced = Order(
        order_2N=jnp.where(ends, state.order_2N[::-1], state.order_2N),
        position=state.position + prompts - jnp.where(ends, problems, 0),
        epoch=state.epoch + ends,
    )
    return advanced, ids_P


def draw_in_order(
    state: Order, key, prompts: int, earlier: Earlier | None = None
) -> tuple[Order, jax.Array]:
    """The order after a draw, and the drawn ids_P, of P = `prompts` problems.

    An epoch's last batch is filled from the next epoch's order, made from `key`.
    """
    if earlier is None:
        return draw_next(look_ahead(state, key, prompts), prompts)
    # A step's first round sees to it that no round meets a problem again.
    state = jax.lax.cond(
        earlier.first,
        lambda order: look_ahead(order, key, earlier.ahead),
        lambda order: order,
        state,
    )
    return draw_next(state, prompts)
