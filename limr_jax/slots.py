"""Which rollout each row of the cache works on: live rows only.

A device has a queue of rollouts and fewer slots than that. A slot whose rollout ends
takes the next of the queue. When the queues are empty the live rows move together into
the next smaller number of slots: there is one loop over decode for each number, so what
is compiled is fixed. The devices of one loop walk in step; no row leaves its device.

Axes: D devices, S slots (of all devices, or of one where a function says so).
"""

import dataclasses

import jax
import jax.numpy as jnp

# Loops over decode at most, one for each number of slots. Each is compiled, so there is
# one for every so many steps that the longest rollout takes.
LOOPS, STEPS = 7, 16
# Share of the slots that must stand empty before they are refilled, if one slot is
# less: what a refill costs is then shared by several.
EMPTY = 1 / 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Who sits where."""

    row_S: jax.Array  # int32: the rollout, counted on its device
    live_S: jax.Array  # bool: it has not ended
    begun_D: jax.Array  # int32: rollouts of the device's queue that have had a slot


def sizes(slots: int, longest: int, shrinks: int = LOOPS - 1) -> tuple[int, ...]:
    """Numbers of slots of a device, falling, for rollouts of at most `longest` tokens.

    k numbers are slots · (1 − i/k)²: where rows end at one rate, that is within a row
    or two of the k numbers that waste least (dynamic programming over the expected
    steps from one end to the next).
    """
    loops = min(shrinks + 1, -(-longest // STEPS))
    found = {max(1, round(slots * (1 - i / loops) ** 2)) for i in range(loops)}
    return tuple(sorted(found, reverse=True))


def seated(slots: int, rollouts: int, devices: int) -> Slots:
    """The first rollouts of each device in its share of the slots, at most all of them.

    devices: a divisor of `slots` and of `rollouts`.
    """
    slots = min(slots, rollouts) // devices
    return Slots(
        row_S=jnp.tile(jnp.arange(slots, dtype=jnp.int32), devices),
        live_S=jnp.ones(slots * devices, bool),
        begun_D=jnp.full(devices, slots, jnp.int32),
    )


def refill(slots: Slots, rows: int) -> tuple[Slots, jax.Array]:
    """One device: its empty slots take the next of its `rows` rollouts; also which."""
    empty_S = ~slots.live_S
    row_S = slots.begun_D + jnp.cumsum(empty_S, dtype=jnp.int32) - 1
    fresh_S = empty_S & (row_S < rows)
    return Slots(
        row_S=jnp.where(fresh_S, row_S, slots.row_S),
        live_S=slots.live_S | fresh_S,
        begun_D=slots.begun_D + jnp.sum(fresh_S, dtype=jnp.int32),
    ), fresh_S


def first_where(is_S: jax.Array) -> jax.Array:
    """The indices of all, those where it is so first."""
    return jnp.argsort(~is_S, stable=True)


def drive(state, step, table, shrinks: int = LOOPS - 1):
    """All rollouts from the first to the last: (state, slots × steps of a device).

    state: anything with `slots`, its `Slots`;
    step(state): a token of every live row; it ends some;
    table.rows: rollouts of each device, table.longest: tokens that they have at most;
    table.refilled(state): empty slots have taken the next of the queue;
    table.shrunk(state, size): the live rows in `size` slots of each device.
    """
    devices = state.slots.begun_D.shape[0]
    slots = state.slots.row_S.shape[0] // devices

    def counts(state):
        """Live rows of the fullest device; slots to refill; rollouts that wait."""
        seats = state.slots
        live_D = jnp.sum(seats.live_S.reshape(devices, -1), axis=1)
        waiting_D = table.rows - seats.begun_D
        empty_D = seats.live_S.shape[0] // devices - live_D
        useful = jnp.sum(jnp.minimum(empty_D, waiting_D))
        return jnp.max(live_D), useful, jnp.sum(waiting_D)

    def stage(carry, size, smaller, queue):
        enough = max(1, int(size * devices * EMPTY))

        def goes_on(carry):
            most, useful, waiting = counts(carry[0])
            if not queue:
                return most > smaller
            busy = (waiting > 0) & (most > 0) | (most > smaller)
            # The last that wait are not kept waiting for more of them.
            return busy & (useful < jnp.clip(waiting, 1, enough))

        def one(carry):
            state, held = carry
            return step(state), held + size

        def unfinished(carry):
            most, _, waiting = counts(carry[0])
            return (waiting > 0) | (most > smaller)

        def round_(carry):
            state, held = carry
            return jax.lax.while_loop(goes_on, one, (table.refilled(state), held))

        if queue:
            return jax.lax.while_loop(unfinished, round_, carry)
        return jax.lax.while_loop(goes_on, one, carry)

    numbers = sizes(slots, table.longest, shrinks)
    carry = (state, jnp.int32(0))
    for i, size in enumerate(numbers):
        smaller = numbers[i + 1] if i + 1 < len(numbers) else 0
        state, held = stage(carry, size, smaller, queue=i == 0 and table.rows > slots)
        carry = (table.shrunk(state, smaller) if smaller else state, held)
    return carry
