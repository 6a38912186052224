"""Which problems a step draws: pure functions over state that lives on the devices.

A prompt sampler is three functions, as optax has two:

    init() → state
    sample(state, key) → state, ids_P
    update(state, ids_P, reward_PG, valid_PG) → state

and `report(state, ids_P) → metrics`, of the state that `sample` gave: an update may
weigh anew, and shares are of the weights that were drawn by. State is replicated and
part of the checkpoint. A problem is drawn at most once a step. Rewards are raw
correctness.

Dynamic sampling has one more, `keep(state, reward_PG, valid_PG) → keep_P`: the groups
to learn from. With it a step samples once a round, and updates after the last one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class PromptSampler(NamedTuple):
    """The interface; see the module's docstring."""

    init: Callable[[], Any]
    sample: Callable[..., Any]
    update: Callable[..., Any]
    report: Callable[..., dict]
    keep: Callable[..., jax.Array] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Order:
    """Every problem exactly once an epoch, in a new random order each time."""

    order_2N: jax.Array  # int32: this epoch's order, and the next one's
    position: jax.Array  # int32: how much of this epoch's order is drawn
    epoch: jax.Array  # int32: epochs finished


def first_order(key, problems: int) -> Order:
    """A random order of the first epoch, nothing of it drawn."""
    this = jax.random.permutation(jax.random.fold_in(key, 0), problems)
    return Order(
        order_2N=jnp.stack([this, jnp.zeros_like(this)]).astype(jnp.int32),
        position=jnp.int32(0),
        epoch=jnp.int32(0),
    )


def next_order(key, this_N: jax.Array, position, fill, ready_N=None) -> jax.Array:
    """A random order for the next epoch that can fill this one's last batch.

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
    """The same place; the next `count` draws (≤ N) are of different problems.

    If they reach this epoch's end, the next one's order is made anew for it.
    """
    problems = state.order_2N.shape[1]

    def prepare(state):
        fill = count - (problems - state.position)
        following_N = next_order(
            jax.random.fold_in(key, 1), state.order_2N[0], state.position, fill
        )
        return state.order_2N.at[1].set(following_N)

    ends = state.position + count >= problems
    order_2N = jax.lax.cond(ends, prepare, lambda state: state.order_2N, state)
    return dataclasses.replace(state, order_2N=order_2N)


def draw_next(state: Order, prompts: int) -> tuple[Order, jax.Array]:
    """The next P of the order, for which `look_ahead` has seen to what follows it."""
    problems = state.order_2N.shape[1]
    ends = state.position + prompts >= problems
    order_X = state.order_2N.reshape(-1)  # X = 2N
    ids_P = jax.lax.dynamic_slice(order_X, (state.position,), (prompts,))
    advanced = Order(
        order_2N=jnp.where(ends, state.order_2N[::-1], state.order_2N),
        position=state.position + prompts - jnp.where(ends, problems, 0),
        epoch=state.epoch + ends,
    )
    return advanced, ids_P


def draw_in_order(state: Order, key, prompts: int) -> tuple[Order, jax.Array]:
    """The next P of the order; the last batch is filled from the next epoch's."""
    return draw_next(look_ahead(state, key, prompts), prompts)


def uniform(*, problems: int, prompts: int, key) -> PromptSampler:
    """Every problem once an epoch, whatever its rewards; `key`: of the first order."""
    return PromptSampler(
        init=lambda: first_order(key, problems),
        sample=lambda state, key: draw_in_order(state, key, prompts),
        update=lambda state, ids_P, reward_PG, valid_PG: state,
        report=lambda state, ids_P: {"epoch": state.epoch + state.position / problems},
    )


def log_weight(weight_N: jax.Array) -> jax.Array:
    """Finite, so that a weight of 0 is drawn when everything else is.

    Then by chance: at −inf all would tie, and top_k would go by index.
    """
    return jnp.log(jnp.maximum(weight_N, 1e-30))


def draw_by_weight(weight_N: jax.Array, key, prompts: int) -> jax.Array:
    """P different problems, by weight without replacement (Gumbel top-k)."""
    noise_N = jax.random.gumbel(key, weight_N.shape)
    _, ids_P = jax.lax.top_k(log_weight(weight_N) + noise_N, prompts)
    return ids_P.astype(jnp.int32)


def effective_problems(weight_N: jax.Array) -> jax.Array:
    """How many problems of equal weight would be as varied: 1 / Σ share²."""
    share_N = jax.nn.softmax(log_weight(weight_N))
    return 1 / jnp.sum(share_N**2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weighted:
    """Weights that stay as they were given."""

    step: jax.Array  # int32: steps drawn
    weight_N: jax.Array  # fp32


def weighted(*, weight_N, prompts: int) -> PromptSampler:
    """Draws by given weights, those of published LIM scores say, from the first step.

    Rewards change nothing. An epoch is ceil(N / P) steps.
    """
    problems = weight_N.shape[0]
    steps_per_epoch = -(-problems // prompts)

    def sample(state, key):
        ids_P = draw_by_weight(state.weight_N, key, prompts)
        return dataclasses.replace(state, step=state.step + 1), ids_P

    def report(state, ids_P):
        return {
            "epoch": state.step / steps_per_epoch,
            "lim/kept_share": jnp.mean(state.weight_N >= 1),
            "lim/drawn_kept_share": jnp.mean(state.weight_N[ids_P] >= 1),
        }

    return PromptSampler(
        init=lambda: Weighted(jnp.int32(0), jnp.asarray(weight_N, jnp.float32)),
        sample=sample,
        update=lambda state, ids_P, reward_PG, valid_PG: state,
        report=report,
    )
