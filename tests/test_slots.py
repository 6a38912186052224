"""Who sits where: every rollout is finished, and few slots stand empty."""

import dataclasses
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limr_jax import slots
from limr_jax.slots import Slots


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lengths:
    """A rollout without a model: rows end when their lengths say so."""

    slots: Slots
    t_S: jax.Array  # tokens that the row has
    made_B: jax.Array  # tokens of each rollout
    steps: jax.Array


def at(fresh_S, rows, state):
    return dataclasses.replace(state, slots=rows, t_S=jnp.where(fresh_S, 0, state.t_S))


@partial(jax.jit, static_argnums=(1, 2, 3))
def simulated(length_DB, size: int, rows: int, longest: int):
    """(tokens made of each rollout, slots × steps of all devices, steps)."""
    devices = len(length_DB)
    device_of = lambda S: jnp.arange(S) // (S // devices)  # noqa: E731

    def step(state):
        row_S, live_S = state.slots.row_S, state.slots.live_S
        device_S = device_of(len(row_S))
        t_S = state.t_S + 1
        live = dataclasses.replace(
            state.slots, live_S=live_S & (t_S < length_DB[device_S, row_S])
        )
        made = state.made_B.at[device_S, row_S].add(live_S)
        return Lengths(live, t_S, made, state.steps + 1)

    def local(x):
        """[D · S] as [D, S]; what is one for each device as [D, 1]."""
        return jax.tree.map(lambda x: x.reshape(devices, -1), x)

    def refilled(state):
        rows_now, fresh_DS = jax.vmap(partial(slots.refill, rows=rows))(
            local(state.slots)
        )
        rows_now = jax.tree.map(lambda x: x.reshape(-1), rows_now)
        return at(fresh_DS.reshape(-1), rows_now, state)

    def shrunk(state, size):
        def one(live_S, row_S, t_S):
            row_X = slots.first_where(live_S)[:size]
            return live_S[row_X], row_S[row_X], t_S[row_X]

        seats = state.slots
        live, row, t = (
            x.reshape(-1)
            for x in jax.vmap(one)(*local((seats.live_S, seats.row_S, state.t_S)))
        )
        seats = dataclasses.replace(seats, live_S=live, row_S=row)
        return dataclasses.replace(state, slots=seats, t_S=t)

    start = Lengths(
        slots.seated(size * devices, rows * devices, devices),
        jnp.zeros(size * devices, jnp.int32),
        jnp.zeros((devices, rows), jnp.int32),
        jnp.int32(0),
    )
    table = types.SimpleNamespace(
        rows=rows, longest=longest, refilled=refilled, shrunk=shrunk
    )
    state, held = slots.drive(start, step, table)
    return state.made_B, held * devices, state.steps


def run(length_B, size, devices=1, longest=128):
    """Waste and steps of rollouts of these lengths, each of which is finished once."""
    length_DB = jnp.asarray(length_B, jnp.int32).reshape(devices, -1)
    made_DB, held, steps = simulated(
        length_DB, size // devices, length_DB.shape[1], longest
    )
    np.testing.assert_array_equal(made_DB, length_DB)
    return 1 - length_DB.sum() / held, steps


def test_sizes_fall():
    assert slots.sizes(32, 128) == (32, 24, 16, 10, 6, 3, 1)
    assert slots.sizes(1024, 3072) == (1024, 752, 522, 334, 188, 84, 21)
    assert slots.sizes(512, 3072, 1) == (512, 128)
    assert slots.sizes(512, 40) == (512, 228, 57)
    assert slots.sizes(512, 16) == (512,)
    assert slots.sizes(2, 128) == (2, 1)
    assert slots.sizes(1, 128) == (1,)


def test_refill_by_hand():
    """Slots 1 and 2 are empty, and only rollout 4 waits; then slot 0 alone, for two."""
    seats = Slots(jnp.array([0, 1, 3]), jnp.array([True, False, False]), jnp.array([4]))
    now, fresh_S = slots.refill(seats, 5)
    assert now.row_S.tolist() == [0, 4, 3] and fresh_S.tolist() == [False, True, False]
    assert now.live_S.tolist() == [True, True, False] and now.begun_D.tolist() == [5]
    seats = Slots(jnp.array([0, 1]), jnp.array([False, True]), jnp.array([2]))
    now, fresh_S = slots.refill(seats, 4)
    assert now.row_S.tolist() == [2, 1] and fresh_S.tolist() == [True, False]


def test_waste_by_hand():
    """Two slots, lengths 3, 1, 2: A A A beside B C C; then 4, 1: A alone at the end."""
    assert run([3, 1, 2], 2) == (0, 3)
    # Two slots for one step, one slot for three.
    assert run([4, 1], 2) == (0, 4)


@pytest.mark.parametrize("devices", [1, 4])
def test_every_rollout_is_finished(devices):
    """Ragged lengths; a row that ends at once, and queues that run dry unevenly."""
    random = np.random.default_rng(devices)
    for size in (4, 8, 32):
        length_B = np.minimum(random.geometric(0.2, 32), 20)
        length_B[:8] = 1
        run(length_B, size, devices)


def test_waste_of_geometric_lengths():
    """Mean 32, at most 128; 64 rollouts in 32 slots. Fixed slots waste 49 %."""
    random = np.random.default_rng(0)
    waste = [
        run(np.minimum(random.geometric(1 / 32, 64), 128), 32)[0] for _ in range(20)
    ]
    assert np.mean(waste) <= 0.1


def test_waste_of_the_papers_step():
    """8,192 lognormal lengths, median 600, σ 0.7, at most 3,072, in 1,024 slots."""
    random = np.random.default_rng(0)
    length_B = np.minimum(3072, random.lognormal(np.log(600), 0.7, 8192)).astype(int)
    waste, steps = run(length_B, 1024, longest=3072)
    print(waste, steps)
    assert waste <= 0.05
