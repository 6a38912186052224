"""The slots: every rollout is finished, and few slots stand empty."""

import dataclasses
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limr_jax.rollout import slots
from limr_jax.rollout.slots import Slots


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lengths:
    """A rollout without a model: rows end when their lengths say so."""

    slots: Slots
    t_Z: jax.Array  # tokens that the row has
    made_B: jax.Array  # tokens of each rollout
    steps: jax.Array


def at(fresh_Z, rows, state):
    return dataclasses.replace(state, slots=rows, t_Z=jnp.where(fresh_Z, 0, state.t_Z))


@partial(jax.jit, static_argnums=(1, 2, 3))
def simulated(length_MB, size: int, rows: int, longest: int):
    """(tokens made of each rollout, slots × steps of all devices, steps)."""
    devices = len(length_MB)
    device_of = lambda Z: jnp.arange(Z) // (Z // devices)  # noqa: E731

    def step(state):
        row_Z, live_Z = state.slots.row_Z, state.slots.live_Z
        device_Z = device_of(len(row_Z))
        t_Z = state.t_Z + 1
        live = dataclasses.replace(
            state.slots, live_Z=live_Z & (t_Z < length_MB[device_Z, row_Z])
        )
        made = state.made_B.at[device_Z, row_Z].add(live_Z)
        return Lengths(live, t_Z, made, state.steps + 1)

    def local(x):
        """[M · Z] as [M, Z]; what is one for each device as [M, 1]."""
        return jax.tree.map(lambda x: x.reshape(devices, -1), x)

    def refill(state):
        rows_now, fresh_MZ = jax.vmap(partial(slots.refill, rows=rows))(
            local(state.slots)
        )
        rows_now = jax.tree.map(lambda x: x.reshape(-1), rows_now)
        return at(fresh_MZ.reshape(-1), rows_now, state)

    def compact(state, size):
        def one(live_Z, row_Z, t_Z):
            row_X = slots.first_where(live_Z)[:size]
            return live_Z[row_X], row_Z[row_X], t_Z[row_X]

        now = state.slots
        live, row, t = (
            x.reshape(-1)
            for x in jax.vmap(one)(*local((now.live_Z, now.row_Z, state.t_Z)))
        )
        now = dataclasses.replace(now, live_Z=live, row_Z=row)
        return dataclasses.replace(state, slots=now, t_Z=t)

    plan = slots.plan(
        size * devices, rollouts=rows * devices, devices=devices, longest=longest
    )
    start = Lengths(
        slots.init(plan),
        jnp.zeros(plan.per_device * devices, jnp.int32),
        jnp.zeros((devices, rows), jnp.int32),
        jnp.int32(0),
    )
    batcher = types.SimpleNamespace(
        rows=rows, quota=rows, refill=refill, compact=compact
    )
    state, held = slots.drive(start, step, batcher, plan)
    return state.made_B, held * devices, state.steps


def run(length_B, size, devices=1, longest=128):
    """Waste and steps of rollouts of these lengths, each of which is finished once."""
    length_MB = jnp.asarray(length_B, jnp.int32).reshape(devices, -1)
    made_MB, held, steps = simulated(
        length_MB, size // devices, length_MB.shape[1], longest
    )
    np.testing.assert_array_equal(made_MB, length_MB)
    return 1 - length_MB.sum() / held, steps


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
    before = Slots(
        jnp.array([0, 1, 3]), jnp.array([True, False, False]), jnp.array([4])
    )
    now, fresh_Z = slots.refill(before, 5)
    assert now.row_Z.tolist() == [0, 4, 3] and fresh_Z.tolist() == [False, True, False]
    assert now.live_Z.tolist() == [True, True, False] and now.begun_M.tolist() == [5]
    before = Slots(jnp.array([0, 1]), jnp.array([False, True]), jnp.array([2]))
    now, fresh_Z = slots.refill(before, 4)
    assert now.row_Z.tolist() == [2, 1] and fresh_Z.tolist() == [True, False]


def test_waste_by_hand():
    """Two slots, lengths 3, 1, 2: A A A beside B C C; then 4, 1: A alone at the end."""
    assert run([3, 1, 2], 2) == (0, 3)
    # Two slots for one step, one slot for three.
    assert run([4, 1], 2) == (0, 4)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_every_rollout_is_finished(devices):
    """Ragged lengths; a row that ends at once, and queues that run dry unevenly."""
    random = np.random.default_rng(devices)
    for size in (4, 8, 32):
        length_B = np.minimum(random.geometric(0.2, 32), 20)
        length_B[:8] = 1
        run(length_B, size, devices)


@pytest.mark.slow
def test_waste_of_geometric_lengths():
    """Mean 32, at most 128; 64 rollouts in 32 slots. Fixed slots waste 49 %."""
    random = np.random.default_rng(0)
    waste = [
        run(np.minimum(random.geometric(1 / 32, 64), 128), 32)[0] for _ in range(20)
    ]
    assert np.mean(waste) <= 0.1


@pytest.mark.slow
def test_waste_of_the_papers_step():
    """8,192 lognormal lengths, median 600, σ 0.7, at most 3,072, in 1,024 slots."""
    random = np.random.default_rng(0)
    length_B = np.minimum(3072, random.lognormal(np.log(600), 0.7, 8192)).astype(int)
    waste, steps = run(length_B, 1024, longest=3072)
    print(waste, steps)
    assert waste <= 0.05
