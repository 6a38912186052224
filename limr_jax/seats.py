"""Rows of a rollout's loop: how they are seated, replaced and moved together.

What goes on here is of one device's own rows: each takes the next of its own queue,
and reads the keys and values of its prompt, or gets a copy of them, where the same
device has prefilled them.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from limr_jax import cache as kv
from limr_jax.layers import ModelConfig
from limr_jax.sharding import REPLICATED, on_each, row_shards
from limr_jax.slots import Slots, first_where, refill


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queue:
    """What every rollout begins with."""

    token_B: jax.Array  # int32: its first token, drawn from the prompt's last logits
    ended_B: jax.Array  # bool: that was its last as well
    key_B2: jax.Array  # uint32: its random key's data
    last_B: jax.Array  # int32: position of its prompt's last token

    @classmethod
    def of(cls, token_B, ended_B, key_B, position_PL) -> "Queue":
        """Of random keys, and of the positions of the prompts."""
        last_B = jnp.repeat(position_PL[:, -1], len(token_B) // len(position_PL))
        return cls(token_B, ended_B, jax.random.key_data(key_B), last_B)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seats:
    """What a row of the cache is at."""

    token_S: jax.Array  # int32: the last token chosen, not yet read
    t_S: jax.Array  # int32: response position of the next
    key_S2: jax.Array  # uint32
    last_S: jax.Array  # int32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What the loop over decode carries."""

    slots: Slots
    seats: Seats
    cache: kv.KVCache
    column: jax.Array  # int32: where the next step writes, all rows alike
    out: dict  # [B, T] arrays: what has been written


@dataclasses.dataclass(frozen=True)
class Table:
    """The rollouts of a step and their prompts, and how their rows come and go."""

    prompts: kv.KVCache  # P rows of L columns
    queue: Queue
    config: ModelConfig
    length: int  # L, columns of a prompt
    longest: int  # tokens of a rollout at most
    shares: bool  # rows read their prompts where these are, and get no copy
    rows_over: tuple | None  # the mesh axes that rows lie over

    @classmethod
    def of(cls, prompts, queue, *, config, length: int, longest: int, rows_over):
        """Of the prompts' cache, as `model.prefill` leaves it."""
        shares = kv.shares(config, length=length, columns=longest)
        if shares:
            prompts = kv.in_order(prompts, config, length=length)
        return cls(prompts, queue, config, length, longest, shares, rows_over)

    def shared(self, slots: Slots) -> kv.Shared | None:
        """What the rows read beside their own columns."""
        if not self.shares:
            return None
        return kv.Shared(self.prompts, slots.row_S // self.group)

    @property
    def start(self) -> int:
        """The column that the first step writes."""
        return 0 if self.shares else self.length

    @property
    def rows(self) -> int:
        """Rollouts of each device."""
        return len(self.queue.last_B) // row_shards(self.prompts.rows)

    @property
    def group(self) -> int:
        return len(self.queue.last_B) // self.prompts.rows

    def seated(self, slots: Slots, out: dict) -> State:
        """The first rollouts of each device in its slots."""
        size = slots.row_S.shape[0] // slots.begun_D.shape[0]

        def seat(prompts, queue):
            queue = jax.tree.map(lambda x: x[:size], queue)
            made = kv.ring if self.shares else partial(kv.repeat, group=self.group)
            columns = self.start + self.longest
            cache = made(prompts, self.config, rows=size, columns=columns)
            return _begin(queue), ~queue.ended_B, cache

        seats, live_S, cache = self._each(
            seat,
            (self.prompts, self.queue),
            like=(_begin(self.queue), self.queue.ended_B, self.prompts),
        )
        slots = dataclasses.replace(slots, live_S=live_S)
        return State(slots, seats, cache, jnp.int32(self.start), out)

    def refilled(self, state: State) -> State:
        """Empty slots take the next rollouts of their device's queue."""

        def local(slots, seats, cache, turn, prompts, queue):
            slots, fresh_S = refill(slots, len(queue.last_B))
            begun = jax.tree.map(lambda x: x[slots.row_S], queue)
            seats = jax.tree.map(
                lambda new, old: jnp.where(_along(fresh_S, old), new, old),
                _begin(begun),
                seats,
            )
            if not self.shares:
                cache = self._copied(cache, prompts, slots, fresh_S, turn)
            live_S = slots.live_S & ~(fresh_S & begun.ended_B)
            return dataclasses.replace(slots, live_S=live_S), seats, cache

        moved = (state.slots, state.seats, state.cache)
        turn = state.column - self.start
        slots, seats, cache = self._each(
            local, (*moved, turn, self.prompts, self.queue), like=moved
        )
        return dataclasses.replace(state, slots=slots, seats=seats, cache=cache)

    def _copied(self, cache, prompts, slots: Slots, fresh_S, turn) -> kv.KVCache:
        """The cache with their prompts in the fresh rows."""
        order_S = first_where(fresh_S)

        def copy(i, cache):
            row = order_S[i]
            prompt = slots.row_S[row] // self.group
            return kv.put(
                cache, prompts, self.config, row=row, prompt=prompt, turn=turn
            )

        return jax.lax.fori_loop(0, jnp.sum(fresh_S), copy, cache)

    def shrunk(self, state: State, size: int) -> State:
        """The live rows of each device in its first `size` slots."""

        def shrink(slots, seats, cache):
            row_X = first_where(slots.live_S)[:size]
            row_S, live_S = slots.row_S[row_X], slots.live_S[row_X]
            slots = dataclasses.replace(slots, row_S=row_S, live_S=live_S)
            return slots, jax.tree.map(lambda x: x[row_X], seats), kv.take(cache, row_X)

        moved = (state.slots, state.seats, state.cache)
        slots, seats, cache = self._each(shrink, moved, like=moved)
        return dataclasses.replace(state, slots=slots, seats=seats, cache=cache)

    def noted(self, out: dict, slots: Slots, t_S, written: dict) -> dict:
        """What the live rows wrote at their positions `t_S`, put where it belongs."""

        def note(out, slots, t_S, written):
            nowhere = out["mask_BT"].shape[0]
            row_S = jnp.where(slots.live_S, slots.row_S, nowhere)
            put = lambda x, value_S: x.at[row_S, t_S].set(value_S, mode="drop")  # noqa: E731
            return jax.tree.map(put, out, written)

        return self._each(note, (out, slots, t_S, written), like=out)

    def _each(self, function, given, *, like):
        """`function(*given)` of what each device holds; what it returns is `like`."""

        def spec(x):
            if isinstance(x, kv.KVCache):
                return kv.specs(x, self.rows_over)
            return PartitionSpec(self.rows_over) if x.ndim else REPLICATED

        def specs(tree):
            leaf = lambda x: isinstance(x, kv.KVCache)  # noqa: E731
            return jax.tree.map(spec, tree, is_leaf=leaf)

        return on_each(function, specs(given), specs(like))(*given)


def _begin(queue: Queue) -> Seats:
    """The seats of rollouts that have their first token."""
    return Seats(
        token_S=queue.token_B,
        t_S=jnp.ones_like(queue.token_B),
        key_S2=queue.key_B2,
        last_S=queue.last_B,
    )


def _along(flag_S, x):
    return flag_S.reshape(-1, *(1,) * (x.ndim - 1))
