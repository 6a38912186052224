"""What decode reads of the cache beside what it must, for rollouts of known lengths.

The schedule is `slots.drive` itself, on one device, with a state in which a rollout is
only its length: so which rollout has which slot, and how many columns, is known without
a model. A step must read the weights and the columns of live rows; what it does read,
attention decides (models/attention/ragged_decode.py, models/kv_cache.py).
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.models import kv_cache
from limr_jax.models.attention import ragged_decode
from limr_jax.models.attention.ragged_decode import Cut, OwnCut
from limr_jax.models.config import ModelConfig
from limr_jax.rollout import slots
from limr_jax.rollout.types import GenerateConfig

# Response tokens of a simulated step: the shape of what models write of MATH, cut off
# at the longest response. Median as a share of that, and σ of the logarithm.
MEDIAN, SIGMA = 600 / 3072, 0.7
_BITS = 24  # of the lower part of a total


@dataclasses.dataclass(frozen=True)
class Steps:
    """Sums over the decode steps with one number of slots."""

    slots: int
    steps: int
    live: int  # columns of live rows
    read: int  # columns that were read
    written: int  # columns that were written, with those beside the new ones


def lengths(rollouts: int, longest: int) -> np.ndarray:
    """Lognormal lengths from 1 to `longest`; the same at every call."""
    random = np.random.default_rng(0)
    drawn = random.lognormal(np.log(MEDIAN * longest), SIGMA, rollouts)
    return np.clip(drawn, 1, longest).astype(int)


def planned(
    mesh,
    length: int,
    prompts: int,
    generation: GenerateConfig,
    model: ModelConfig,
    plan: slots.SlotPlan,
) -> list[Steps]:
    """The decode steps of a training step, by number of slots, on one device.

    prompts: of the training step, each of `length` tokens. Responses have the simulated
    `lengths`. An empty list where layers have rings of several lengths. A step is of
    one token a row, whatever it has room for.
    """
    if set(model.pattern) != {"full"}:
        return []
    group, longest = generation.paid_group, generation.response_length
    rollouts = prompts * group // plan.devices
    shared = shares(mesh, length, generation, model)
    read, written = _FilledColumns(length + longest + generation.step_tokens - 1), 1
    if shared:
        # The size of a block depends on how many heads a device has.
        with jax.set_mesh(mesh):
            prompt, own = ragged_decode.cuts(length, longest, model)
        read = _RaggedColumns(length=length, group=group, prompt=prompt, own=own)
        written = ragged_decode.columns_written(own)
    return simulated(
        lengths(rollouts, longest),
        np.full(rollouts, length),
        sizes=plan.sizes,
        length=length,
        read=read,
        written=written,
        group=group if shared else 1,
    )


@dataclasses.dataclass(frozen=True)
class _FilledColumns:
    """What XLA's own attention reads of each row: all that the fullest has filled."""

    columns: int

    def __call__(self, row_Z, count_Z, column_Z):
        filled = jnp.max(jnp.where(count_Z > 0, column_Z + 1, 0))
        # Ended rows read as much: attention is one product over all of them.
        return jnp.full(len(count_Z), kv_cache.width_read(self.columns, filled))


@dataclasses.dataclass(frozen=True)
class _RaggedColumns:
    """What ragged decode reads of each row."""

    length: int  # of a prompt, all of it seen
    group: int
    prompt: Cut
    own: OwnCut

    def __call__(self, row_Z, count_Z, column_Z):
        live_Z = count_Z > 0
        return ragged_decode.columns_read(
            # A row has its prompt's columns elsewhere.
            column_B=jnp.where(live_Z, column_Z - self.length, 0),
            seen_B=jnp.where(live_Z, self.length, 0),
            prompt_B=row_Z // self.group,
            prompt=self.prompt,
            own=self.own,
        )


def shares(mesh, length: int, generation: GenerateConfig, model: ModelConfig) -> bool:
    """`ragged_decode.shares` on a mesh, of prompts so long."""
    with jax.set_mesh(mesh):
        return ragged_decode.shares(
            model,
            length=length,
            columns=generation.response_length,
            step_tokens=generation.step_tokens,
        )


def simulated(
    length_B: np.ndarray,
    prompt_B: np.ndarray,
    *,
    sizes: Sequence[int],
    length: int,
    read: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    written: int = 1,
    group: int = 1,
) -> list[Steps]:
    """The decode steps of one device's rollouts, by number of slots.

    length_B, prompt_B: tokens of its rollouts, in order, and of their prompts.
    sizes: those of its `SlotPlan`.
    length: columns of a prompt, where a rollout's first step writes.
    read: (row_Z, count_Z, column_Z) → columns that each row reads, traced; row_Z is the
    rollout in each slot, count_Z its tokens with the one just written, 0 where it has
    ended, and column_Z where that is. A hashable `read` is compiled once.
    written: columns that each row writes.
    group: rollouts of a prompt that share its columns, which are live once then.
    """
    totals = _simulated(
        jnp.asarray(length_B, jnp.int32),
        jnp.asarray(prompt_B, jnp.int32),
        sizes=tuple(sizes),
        length=length,
        read=read,
        group=group,
    )
    return [
        Steps(
            slots=size,
            steps=int(total.steps),
            live=_whole(total.live_2),
            read=_whole(total.read_2),
            written=size * int(total.steps) * written,
        )
        for size, total in zip(sizes, totals, strict=True)
    ]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Total:
    """`Steps` on the way; what may pass 2³¹ is in two parts, as `_added` has it."""

    steps: jax.Array
    live_2: jax.Array
    read_2: jax.Array

    @classmethod
    def zero(cls) -> "_Total":
        none_2 = jnp.zeros(2, jnp.int32)
        return cls(jnp.int32(0), none_2, none_2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Lengths:
    """The state of `slots.drive` where a rollout is its length and no more."""

    slots: slots.Slots
    t_Z: jax.Array  # int32: tokens that the rollout of each slot has
    total: _Total  # of the steps with this number of slots
    done: tuple  # the totals of larger numbers


@dataclasses.dataclass(frozen=True)
class _Batcher:
    """One device's rollouts by their lengths, as `slots.drive` wants them."""

    length_B: jax.Array

    @property
    def rows(self) -> int:
        return len(self.length_B)

    @property
    def quota(self) -> int:
        return self.rows

    def init(self, first: slots.Slots) -> _Lengths:
        """The state in which the slots hold the first rollouts."""
        # The first token came with the prompt: a rollout of one token has ended.
        live_Z = self.length_B[first.row_Z] > 1
        return _Lengths(
            slots=dataclasses.replace(first, live_Z=live_Z),
            t_Z=jnp.ones_like(first.row_Z),
            total=_Total.zero(),
            done=(),
        )

    def refill(self, state: _Lengths) -> _Lengths:
        """The state with pending rollouts in the empty slots."""
        now, fresh_Z = slots.refill(state.slots, self.rows)
        ended_Z = fresh_Z & (self.length_B[now.row_Z] == 1)
        return dataclasses.replace(
            state,
            slots=dataclasses.replace(now, live_Z=now.live_Z & ~ended_Z),
            t_Z=jnp.where(fresh_Z, 1, state.t_Z),
        )

    def compact(self, state: _Lengths, size: int) -> _Lengths:
        """The state with the live rows in `size` slots, and a total that begins."""
        row_X = slots.first_where(state.slots.live_Z)[:size]
        return dataclasses.replace(
            state,
            slots=dataclasses.replace(
                state.slots,
                row_Z=state.slots.row_Z[row_X],
                live_Z=state.slots.live_Z[row_X],
            ),
            t_Z=state.t_Z[row_X],
            total=_Total.zero(),
            done=(*state.done, state.total),
        )


@partial(jax.jit, static_argnames=("sizes", "length", "read", "group"))
def _simulated(length_B, prompt_B, *, sizes, length, read, group):
    """The totals of each number of slots."""
    batcher = _Batcher(length_B)

    def step(state: _Lengths) -> _Lengths:
        row_Z, live_Z = state.slots.row_Z, state.slots.live_Z
        # A step reads the last of t tokens and writes its column: t of its own by then.
        column_Z = length + state.t_Z - 1
        count_Z = jnp.where(live_Z, prompt_B[row_Z] + state.t_Z, 0)
        # Rows that share a prompt need its columns once among them.
        once_Z = ragged_decode.first_of_each(row_Z // group, live_Z)
        live = jnp.sum(jnp.where(live_Z, state.t_Z, 0))
        live += jnp.sum(jnp.where(once_Z, prompt_B[row_Z], 0))
        t_Z, total = state.t_Z + 1, state.total
        return dataclasses.replace(
            state,
            slots=dataclasses.replace(
                state.slots, live_Z=live_Z & (t_Z < length_B[row_Z])
            ),
            t_Z=t_Z,
            total=_Total(
                steps=total.steps + 1,
                live_2=_added(total.live_2, live),
                read_2=_added(total.read_2, jnp.sum(read(row_Z, count_Z, column_Z))),
            ),
        )

    plan = slots.SlotPlan(1, sizes)
    state = batcher.init(slots.init(plan))
    state, _ = slots.drive(state, step, batcher, plan)
    return (*state.done, state.total)


def _added(total_2, count):
    """A total of counts below 2³⁰, in two parts: JAX has 32 bits here."""
    # Below 2²⁴ + 2³⁰, so it fits; what is above 24 bits is carried.
    low = total_2[1] + count
    return jnp.stack([total_2[0] + (low >> _BITS), low & (2**_BITS - 1)])


def _whole(total_2) -> int:
    high, low = map(int, total_2)
    return (high << _BITS) + low


def must(parts: list[Steps], *, weights: float, column: float) -> float:
    """Bytes that a device reads in these steps at least: weights, and live columns.

    weights: bytes that each step reads of them. column: bytes of a row's column, keys
    and values of all layers.
    """
    return sum(weights * part.steps + column * part.live for part in parts)


def ratio(parts: list[Steps], *, weights: float, column: float) -> float:
    """Bytes that a device moves in these steps, over those that it must read.

    The arguments are those of `must`. At least one of the parts has a step.
    """
    moved = sum(
        weights * part.steps + column * (part.read + part.written) for part in parts
    )
    return moved / must(parts, weights=weights, column=column)
