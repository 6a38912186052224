"""When rollouts get slots, the rows of the cache that decode works on.

A device has more rollouts than slots. A slot whose rollout ends is refilled with the
next one that is pending. When none is pending the live rows are compacted into the next
smaller number of slots: there is one loop over decode for each number, so what is
compiled is fixed. The devices of one loop walk in step; no row leaves its device.

Axes: M devices, Z slots (of all devices, or of one where a function says so).
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

# Loops over decode at most, one for each number of slots. Each is compiled, so there is
# one for every so many steps that the longest rollout takes.
LOOPS, STEPS = 7, 16
# Slots are refilled once this share of them stands empty, at least one: what a refill
# costs is then shared by several.
EMPTY = 1 / 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """The rollout of each slot, and how many each device has begun."""

    row_Z: jax.Array  # int32: the rollout, counted on its device
    live_Z: jax.Array  # bool: it has not ended
    begun_M: jax.Array  # int32: rollouts of the device that have or had a slot

    @property
    def per_device(self) -> int:
        """Slots of a device."""
        return self.row_Z.shape[0] // self.begun_M.shape[0]

    @property
    def live_M(self) -> jax.Array:
        """int32: live rows of each device."""
        # A device's slots follow one another along Z.
        live_MZ = self.live_Z.reshape(len(self.begun_M), -1)
        return jnp.sum(live_MZ, axis=1, dtype=jnp.int32)


@dataclasses.dataclass(frozen=True)
class SlotPlan:
    """How many rollouts are decoded at once: one loop over decode for each number."""

    devices: int  # that walk in step
    sizes: tuple[int, ...]  # slots of a device, falling

    @property
    def per_device(self) -> int:
        """Slots of a device in the first loop."""
        return self.sizes[0]


def plan(
    slots: int,
    *,
    rollouts: int,
    devices: int,
    longest: int,
    compactions: int = LOOPS - 1,
) -> SlotPlan:
    """The slots of a generation; `slots`, at most `rollouts`, are of all devices.

    longest: tokens of a rollout at most.
    compactions: moves into fewer slots at most.

    Raises:
      ValueError: `slots` does not divide over the devices.
    """
    if slots < 1 or slots % devices:
        raise ValueError(f"slots={slots} for {devices} devices")
    per_device = min(slots, rollouts) // devices
    return SlotPlan(devices, sizes(per_device, longest, compactions))


def sizes(slots: int, longest: int, compactions: int = LOOPS - 1) -> tuple[int, ...]:
    """Numbers of slots of a device, falling, for rollouts of at most `longest` tokens.

    k numbers are slots · (1 − i/k)²: where rows end at one rate, that is within a row
    or two of the k numbers that waste least (dynamic programming over the expected
    steps from one end to the next).
    """
    loops = min(compactions + 1, -(-longest // STEPS))
    # A set, for of few slots several numbers round to the same.
    numbers = {max(1, round(slots * (1 - i / loops) ** 2)) for i in range(loops)}
    return tuple(sorted(numbers, reverse=True))


def init(plan: SlotPlan) -> Slots:
    """The slots of all devices, with the first rollouts of each."""
    devices, size = plan.devices, plan.per_device
    return Slots(
        row_Z=jnp.tile(jnp.arange(size, dtype=jnp.int32), devices),
        live_Z=jnp.ones(size * devices, bool),
        begun_M=jnp.full(devices, size, jnp.int32),
    )


def refill(slots: Slots, rows: int | jax.Array) -> tuple[Slots, jax.Array]:
    """One device's slots, the empty ones with its next rollouts; and which those are.

    rows: rollouts of the device that are to be written; may be traced.
    """
    empty_Z = ~slots.live_Z
    # The k-th empty slot takes the k-th pending rollout; one beyond the device's last
    # does not exist, and its slot stays empty.
    row_Z = slots.begun_M + jnp.cumsum(empty_Z, dtype=jnp.int32) - 1
    fresh_Z = empty_Z & (row_Z < rows)
    return Slots(
        row_Z=jnp.where(fresh_Z, row_Z, slots.row_Z),
        live_Z=slots.live_Z | fresh_Z,
        begun_M=slots.begun_M + jnp.sum(fresh_Z, dtype=jnp.int32),
    ), fresh_Z


def first_where(is_Z: jax.Array) -> jax.Array:
    """All indices, those at which `is_Z` is true first; each part in order."""
    return jnp.argsort(~is_Z, stable=True)


def drive(state, step, batcher, plan: SlotPlan, drafted=None):
    """All rollouts from the first to the last: (state, slots × steps of a device).

    state: anything with `slots`, its `Slots`, as `init` makes them.
    step(state): the state after a token of every live row; it ends some.
    drafted(state): likewise of several tokens, in loops of so many slots a device that
    batcher.has_drafts(size); it takes turns with `step` by batcher.drafts_pay(state).
    None: in no loop.
    batcher.rows: rollouts of each device at most.
    batcher.quota: those of them that are to be written; traced and of each device
    (int32 [M]) where that depends on data.
    batcher.refill(state): the state with pending rollouts in the empty slots.
    batcher.compact(state, size): the state with the live rows in `size` slots of each
    device.

    `decode_state.Batcher` is one of a model; compilation/decode_traffic.py has one of
    lengths alone.
    """
    devices = plan.devices

    def counts(state):
        """Live rows of the fullest device; slots to refill; pending rollouts."""
        slots = state.slots
        live_M = slots.live_M
        pending_M = batcher.quota - slots.begun_M
        empty_M = slots.live_Z.shape[0] // devices - live_M
        # An empty slot of a device without pending rollouts is of no use to another's:
        # rows stay on their device.
        useful = jnp.sum(jnp.minimum(empty_M, pending_M))
        # The fullest: all devices are compacted to one number of slots.
        return jnp.max(live_M), useful, jnp.sum(pending_M)

    def stage(carry, size, smaller, refills):
        """The loop with so many slots a device, until `smaller` would do."""
        enough = max(1, int(size * devices * EMPTY))

        def goes_on(carry):
            most, useful, pending = counts(carry[0])
            if not refills:
                return most > smaller  # until the next loop's slots hold all
            # With no live row there is nothing to decode, only to refill.
            busy = (pending > 0) & (most > 0) | (most > smaller)
            # The last that are pending are not kept waiting for more of them.
            return busy & (useful < jnp.clip(pending, 1, enough))

        def one(step, carry):
            state, held = carry
            # Empty slots are computed too, so they count as held.
            return step(state), held + size

        def walk(carry):
            """Steps until something else has to be done."""
            if drafted is None or not batcher.has_drafts(size):
                return jax.lax.while_loop(goes_on, partial(one, step), carry)

            def pays(carry):
                return goes_on(carry) & batcher.drafts_pay(carry[0])

            def does_not(carry):
                return goes_on(carry) & ~batcher.drafts_pay(carry[0])

            # Two loops and no branch: XLA would copy the cache for one.
            def turns(carry):
                carry = jax.lax.while_loop(pays, partial(one, drafted), carry)
                return jax.lax.while_loop(does_not, partial(one, step), carry)

            return jax.lax.while_loop(goes_on, turns, carry)

        def unfinished(carry):
            most, _, pending = counts(carry[0])
            return (pending > 0) | (most > smaller)

        def round_(carry):
            state, held = carry
            # A refill and then steps until the next one pays.
            return walk((batcher.refill(state), held))

        if refills:
            return jax.lax.while_loop(unfinished, round_, carry)
        return walk(carry)

    carry = (state, jnp.int32(0))
    for i, size in enumerate(plan.sizes):
        smaller = plan.sizes[i + 1] if i + 1 < len(plan.sizes) else 0
        # A loop ends with nothing pending, so only the first one ever refills.
        refills = i == 0 and batcher.rows > size
        state, held = stage(carry, size, smaller, refills)
        carry = (batcher.compact(state, smaller) if smaller else state, held)
    return carry
