"""GRESO as a prompt sampler: skips problems that no longer vary (arXiv:2506.02177).

The formulas are in `algorithms/greso.py`. An epoch's random order is walked, each
problem in turn is skipped or drawn, until P are drawn; the rest of the last batch comes
from the next epoch's order. Where fewer than P of all N problems would be drawn, those
that came nearest to it are drawn too: a batch is never short. Departure: the paper also
drops groups without variance after their rollout; here that is filter.groups=mixed, and
a problem that an earlier round of the step has drawn is skipped.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from limr_jax.algorithms import greso as greso_math
from limr_jax.samplers.interface import Earlier, PromptSampler
from limr_jax.samplers.order import Order, first_order, next_order


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GresoState:
    """The walk, and what decides who is skipped."""

    order: Order
    walked: jax.Array  # int32: problems that the last draw passed, P of them drawn
    learned: greso_math.State


def greso(
    *,
    problems: int,
    prompts: int,
    key,
    floor: float,
    target_right: float,
    target_wrong: float,
    step: float,
) -> PromptSampler:
    """The sampler of GRESO (arXiv:2506.02177): skips problems that do not vary.

    The longer a problem's run of visits without variance, the likelier it is skipped.
    key: of the first epoch's order. floor: the least probability with which a problem
    is drawn when its turn comes. target_right, target_wrong: shares of all-right and
    all-wrong groups to be held; `step` is by how much a step's shares move the two
    exploration probabilities.
    """

    def init():
        order = first_order(key, problems)
        return GresoState(order, jnp.int32(0), greso_math.init(problems))

    def sample(state, key, earlier=None):
        ready_key, order_key = jax.random.split(key)
        skip_N = greso_math.skip_probability(state.learned, floor=floor)
        ready_N = _ready(skip_N, ready_key, prompts, earlier)
        order, ids_P, walked = _walk(state.order, ready_N, order_key, prompts)
        return GresoState(order, walked, state.learned), ids_P

    def update(state, ids_P, correct_PG, valid_PG):
        learned = greso_math.update(
            state.learned,
            ids_P,
            correct_PG > 0,
            valid_PG,
            target_right=target_right,
            target_wrong=target_wrong,
            step=step,
        )
        return dataclasses.replace(state, learned=learned)

    return PromptSampler(init, sample, update, partial(_report, problems=problems))


def _ready(skip_N, key, prompts: int, earlier: Earlier | None):
    """Who is not skipped this round; at least P are not."""
    # Skipped with probability `skip`: where the slack is below 0.
    slack_N = jax.random.uniform(key, skip_N.shape) - skip_N
    if earlier is not None:
        slack_N = jnp.where(earlier.drawn_N, -jnp.inf, slack_N)
    nearest_P, _ = jax.lax.top_k(slack_N, prompts)
    # Where fewer than P would be left, the bar is the P-th largest slack.
    return slack_N >= jnp.minimum(nearest_P[-1], 0.0)


def _walk(state: Order, ready_N, key, prompts: int):
    """The next P of the order that are ready, and how many it passed to find them."""
    problems = ready_N.shape[0]
    place_N = jnp.arange(problems)
    # Those that are ready in what is left of this epoch's order.
    left = jnp.sum(ready_N[state.order_2N[0]] & (place_N >= state.position))

    def prepare(order_2N):
        following_N = next_order(
            key, order_2N[0], state.position, prompts - left, ready_N
        )
        return order_2N.at[1].set(following_N)

    # The next order is sorted only where this batch reaches the epoch's end: with
    # exactly P left it may, if the last of them stands last.
    order_2N = jax.lax.cond(left <= prompts, prepare, lambda x: x, state.order_2N)
    id_X = order_2N.reshape(-1)  # X = 2N: this epoch's order and the next one's
    drawn_X = ready_N[id_X] & (jnp.arange(2 * problems) >= state.position)
    # The next order holds all that are ready, P at least: no place is left unfilled.
    (place_P,) = jnp.nonzero(drawn_X, size=prompts)
    after = place_P[-1].astype(jnp.int32) + 1
    ends = after >= problems
    # At the end the next order becomes this epoch's; the other is made anew in time.
    advanced = Order(
        order_2N=jnp.where(ends, order_2N[::-1], order_2N),
        position=after - jnp.where(ends, problems, 0),
        epoch=state.epoch + ends,
    )
    return advanced, id_X[place_P], after - state.position


def _report(state: GresoState, ids_P, *, problems: int) -> dict:
    learned = state.learned
    return {
        "epoch": state.order.epoch + state.order.position / problems,
        "greso/skipped_share": 1 - len(ids_P) / state.walked,
        "greso/explore_right": learned.explore_right,
        "greso/explore_wrong": learned.explore_wrong,
        "greso/flat_share": jnp.mean(learned.streak_N > 0),
        "greso/drawn_flat_share": jnp.mean(learned.streak_N[ids_P] > 0),
    }
