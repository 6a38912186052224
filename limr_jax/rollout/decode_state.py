"""The state of decode: rows of the cache, and how rollouts enter and leave them.

`Batcher` is continuous batching: `init` gives the first rollouts their slots, `refill`
gives empty slots to pending rollouts, `compact` moves live rows into fewer slots, and
`write` puts tokens where they belong. All of it goes on within a device, among its own
rows: a slot takes the next of its device's pending rollouts, and reads the keys and
values of their prompt, or gets a copy of them, where the same device has prefilled
them. rollout/slots.py decides when each happens.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from limr_jax.models import kv_cache as kv
from limr_jax.models.attention import ragged_decode
from limr_jax.models.config import ModelConfig
from limr_jax.rollout import drafts
from limr_jax.rollout import slots as slots_lib
from limr_jax.rollout.slots import Slots, first_where
from limr_jax.sharding import REPLICATED, on_each, row_shards


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pending:
    """What every rollout of the step begins with."""

    token_B: jax.Array  # int32: its first token, drawn from the prompt's last logits
    ended_B: jax.Array  # bool: that was its last as well
    key_B2: jax.Array  # uint32: its random key's data
    last_B: jax.Array  # int32: position of its prompt's last token
    prompt_B: jax.Array  # int32: its prompt, counted on its device
    # int32: the last tokens of prompt and response; None: no drafts are looked up.
    end_Bn: jax.Array | None

    @classmethod
    def of(cls, token_B, ended_B, key_B, position_PL, end_Pn=None) -> "Pending":
        """Of random keys, and of the positions and the last tokens of the prompts."""
        prompts, group = len(position_PL), len(token_B) // len(position_PL)
        prompt_P = jnp.arange(prompts, dtype=jnp.int32)
        # Prompts are dealt to devices in order, as many to each.
        prompt_P %= prompts // row_shards(prompts)
        end_Bn = None
        if end_Pn is not None:
            end_Bn = jnp.repeat(end_Pn, group, axis=0)
            end_Bn = jnp.concatenate([end_Bn[:, 1:], token_B[:, None]], axis=1)
        return cls(
            token_B=token_B,
            ended_B=ended_B,
            key_B2=jax.random.key_data(key_B),
            last_B=jnp.repeat(position_PL[:, -1], group),
            prompt_B=jnp.repeat(prompt_P, group),
            end_Bn=end_Bn,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotState:
    """How far the rollout of each slot is."""

    token_Z: jax.Array  # int32: the last token chosen, not yet read
    t_Z: jax.Array  # int32: response position of the next
    key_Z2: jax.Array  # uint32: the random key's data
    last_Z: jax.Array  # int32: position of the prompt's last token
    prompt_Z: jax.Array  # int32: the prompt, counted on its device
    # int32: the last tokens of prompt and response; None: no drafts are looked up.
    end_Zn: jax.Array | None

    @classmethod
    def of(cls, pending: Pending) -> "SlotState":
        """Of rollouts that have their first token, one a slot."""
        return cls(
            token_Z=pending.token_B,
            t_Z=jnp.ones_like(pending.token_B),
            key_Z2=pending.key_B2,
            last_Z=pending.last_B,
            prompt_Z=pending.prompt_B,
            end_Zn=pending.end_Bn,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """What the loop over decode carries."""

    slots: Slots
    slot_state: SlotState
    cache: kv.KVCache  # a row for each slot
    out: dict  # [B, T] arrays: what has been written
    steps_M: jax.Array  # int32: decode steps of each device
    row_steps_M: jax.Array  # int32: its live rows, summed over them
    # fp32: the share of a device's live rows whose draft began right, lately.
    hits_M: jax.Array


@dataclasses.dataclass(frozen=True)
class Batcher:
    """The rollouts of a step and their prompts, and how they enter and leave slots."""

    prompts: kv.KVCache  # P rows of L columns
    pending: Pending
    config: ModelConfig
    length: int  # L, columns of a prompt
    longest: int  # tokens of a rollout at most
    step_tokens: int  # J, tokens of a row in a decode step at most
    int8: bool  # whether a decode step reads kernels of one byte a weight
    # int32: where drafts are looked up, and the rollouts of each prompt, counted on its
    # device. None: there are no drafts.
    source_PW: jax.Array | None
    rows_PG: jax.Array | None
    shares: bool  # rows read their prompts where these are, and get no copy
    rows_over: tuple | None  # the mesh axes that rows lie over
    # int32: the first so many rollouts of each device are to be written; None: all.
    asked_M: jax.Array | None

    @classmethod
    def of(
        cls,
        prompts,
        pending,
        asked_M=None,
        *,
        config,
        length,
        longest,
        rows_over,
        step_tokens=1,
        int8=False,
        source_PW=None,
    ) -> "Batcher":
        """Of the prompts' cache, as `transformer.prefill` leaves it."""
        shares = ragged_decode.shares(
            config, length=length, columns=longest, step_tokens=step_tokens
        )
        if shares:
            # The kernel counts a prompt's columns from its end, so its last has to be
            # last.
            prompts = kv.in_order(prompts, config, length=length)
        batcher = cls(
            prompts=prompts,
            pending=pending,
            config=config,
            length=length,
            longest=longest,
            step_tokens=step_tokens,
            int8=int8,
            source_PW=source_PW,
            shares=shares,
            rows_over=rows_over,
            asked_M=asked_M,
            rows_PG=None,
        )
        if source_PW is None:
            return batcher

        def rows_of(prompt_B, source_PW):
            return jnp.argsort(prompt_B, stable=True).reshape(len(source_PW), -1)

        rows_PG = batcher._each(rows_of, (pending.prompt_B, source_PW), like=source_PW)
        return dataclasses.replace(batcher, rows_PG=rows_PG)

    def shared(self, slot_state: SlotState) -> kv.Shared | None:
        """What the rows read beside their own columns."""
        if not self.shares:
            return None
        return kv.Shared(self.prompts, slot_state.prompt_Z)

    @property
    def start(self) -> int:
        """The column of a response's first token in its row."""
        return 0 if self.shares else self.length

    def column(self, slot_state: SlotState) -> jax.Array:
        """int32 [Z]: the column of each row's last chosen token, not yet written."""
        return self.start + slot_state.t_Z - 1

    @property
    def counts(self) -> dict[str, int]:
        """Columns of a row for each kind of attention."""
        if self.shares:
            # Its kernel drops what would be written behind a row's last column.
            return ragged_decode.row_counts(self.config, self.longest, self.step_tokens)
        # Behind the longest response's last token a step may have others still.
        columns = self.length + self.longest + self.step_tokens - 1
        return kv.column_counts(self.config, columns, self.step_tokens)

    @property
    def rows(self) -> int:
        """Rollouts of each device, to be written or not."""
        return len(self.pending.last_B) // row_shards(self.prompts.rows)

    @property
    def quota(self) -> int | jax.Array:
        """Rollouts of each device that are to be written: a number, or int32 [M]."""
        return self.rows if self.asked_M is None else self.asked_M

    @property
    def group(self) -> int:
        """G, rollouts of a prompt."""
        return len(self.pending.last_B) // self.prompts.rows

    def init(self, slots: Slots, out: dict) -> DecodeState:
        """The state in which the slots hold the first rollouts of each device."""
        size = slots.per_device

        def first(prompts, pending, slots, asked_M):
            pending = jax.tree.map(lambda x: x[:size], pending)
            config, counts = self.config, self.counts
            if self.shares:
                cache = kv.empty_rows(prompts, config, rows=size, counts=counts)
            elif asked_M is None:
                # Rows are in the order of the prompts, G of each.
                cache = kv.repeat(
                    prompts, config, group=self.group, rows=size, counts=counts
                )
            else:
                # Where some of a group are not asked for, each row names its prompt.
                cache = kv.copies(prompts, config, pending.prompt_B, counts=counts)
            # A rollout whose first token was its last has nothing to decode.
            live_Z = ~pending.ended_B
            if asked_M is not None:
                live_Z &= slots.row_Z < asked_M
                # With more slots than rollouts the number pending would be negative.
                begun_M = jnp.minimum(slots.begun_M, asked_M)
                slots = dataclasses.replace(slots, begun_M=begun_M)
            slots = dataclasses.replace(slots, live_Z=live_Z)
            return slots, SlotState.of(pending), cache

        slots, slot_state, cache = self._each(
            first,
            (self.prompts, self.pending, slots, self.asked_M),
            like=(slots, SlotState.of(self.pending), self.prompts),
        )
        return DecodeState(
            slots=slots,
            slot_state=slot_state,
            cache=cache,
            out=out,
            steps_M=jnp.zeros_like(slots.begun_M),
            row_steps_M=jnp.zeros_like(slots.begun_M),
            hits_M=self._expected_hits(slots, slot_state),
        )

    def _expected_hits(self, slots: Slots, slot_state: SlotState) -> jax.Array:
        """Before the first step: halfway between what was visited and what came again.

        The share of rows whose prompt has been visited, and the share of those whose
        first token, which is there already, is that of the last visit's first rollout.
        To try what is always wrong, until that was known, took four steps of several
        tokens, 15 % of a generation of 64 tokens on a CPU (RECORDS.md).
        """
        if self.source_PW is None:
            return jnp.zeros(slots.begun_M.shape, jnp.float32)

        def local(slots, slot_state, source_PW):
            # A draft begins behind the end of its prompt, which stands first.
            first_Z = source_PW[slot_state.prompt_Z, drafts.LOOKED_UP]
            visited_Z = slots.live_Z & (first_Z >= 0)
            again_Z = visited_Z & (first_Z == slot_state.token_Z)
            count = jnp.sum(visited_Z, dtype=jnp.float32) + jnp.sum(again_Z)
            return count / 2 / jnp.maximum(slots.live_M, 1)

        return self._each(
            local, (slots, slot_state, self.source_PW), like=slots.begun_M
        )

    def has_drafts(self, size: int) -> bool:
        """Whether a loop of so many slots of a device has drafts."""
        return self.source_PW is not None and self._draft_tokens(size) > 0

    def _draft_tokens(self, size: int) -> int:
        return drafts.step_tokens(size, self.step_tokens, int8=self.int8) - 1

    def drafts_pay(self, state: DecodeState) -> jax.Array:
        """Whether a step with drafts gives more than it costs, as far as is known."""
        live_M = state.slots.live_M
        # Of rows that live: a device that is done says nothing of the others'.
        hits = jnp.sum(state.hits_M * live_M) / jnp.maximum(jnp.sum(live_M), 1)
        return hits >= drafts.pays_from()

    def hits(self, state: DecodeState, draft_ZK, drawn_ZJ, weight: float) -> jax.Array:
        """`DecodeState.hits_M` after a step that drew these; weight: its share."""
        M, live_Z = len(state.hits_M), state.slots.live_Z
        right_Z = live_Z & (draft_ZK[:, 0] == drawn_ZJ[:, 0])
        right_M = jnp.sum(right_Z.reshape(M, -1), axis=1, dtype=jnp.float32)
        live_M = state.slots.live_M
        share_M = right_M / jnp.maximum(live_M, 1)
        moved_M = state.hits_M + (share_M - state.hits_M) * weight
        return jnp.where(live_M > 0, moved_M, state.hits_M)

    def probed_hits(self, state: DecodeState, drawn_ZJ) -> jax.Array:
        """`DecodeState.hits_M` after a step without drafts.

        Every few steps drafts are looked up that nothing tries: would they have begun
        right? The others cost no lookup.
        """
        if not self.has_drafts(state.slots.per_device):
            return state.hits_M
        return jax.lax.cond(
            jnp.max(state.steps_M) % drafts.PROBED == 0,
            lambda: self.hits(state, self.draft(state), drawn_ZJ, weight=0.5),
            lambda: state.hits_M,
        )

    def draft(self, state: DecodeState) -> jax.Array:
        """int32 [Z, K]: what each row may write behind its next token, drafts.NONE.

        K is what pays for so many slots; 0 where there are no drafts.
        """
        slots, slot_state = state.slots, state.slot_state
        if not self.has_drafts(slots.per_device):
            return jnp.zeros((len(slots.live_Z), 0), jnp.int32)
        tokens = self._draft_tokens(slots.per_device)

        def local(slot_state, out, rows_PG, source_PW):
            # Rollouts that go on beside this one come behind those of the last visit.
            prompt_Z = slot_state.prompt_Z
            siblings_ZG = rows_PG[prompt_Z]
            written_ZGT = jnp.where(
                out["mask_BT"][siblings_ZG],
                out["response_BT"][siblings_ZG],
                drafts.NONE,
            )
            visit_ZW, end_Zn = source_PW[prompt_Z], slot_state.end_Zn
            siblings_ZW = drafts.sources(
                written_ZGT,
                visit_ZW[:, : end_Zn.shape[1]],  # begins with the prompt's end
            )
            source_ZW = jnp.concatenate([visit_ZW, siblings_ZW], axis=1)
            return drafts.look_up(source_ZW, end_Zn, tokens)

        return self._each(
            local,
            (slot_state, state.out, self.rows_PG, self.source_PW),
            like=slot_state.end_Zn,
        )

    def refill(self, state: DecodeState) -> DecodeState:
        """The state in which empty slots hold the next of their device's rollouts.

        Four slots of a device whose rollouts 4 and 5 are pending (· has ended):

            before   0  ·  2  ·
            after    0  4  2  5

        A rollout whose first token was its last leaves its slot empty again.
        """

        def local(slots, slot_state, cache, prompts, pending, asked_M):
            # M is 1 here: this device's own number.
            rows = len(pending.last_B) if asked_M is None else asked_M[0]
            slots, fresh_Z = slots_lib.refill(slots, rows)
            # Gathered for every slot, kept for the fresh ones: the shapes are fixed.
            first = jax.tree.map(lambda x: x[slots.row_Z], pending)
            slot_state = jax.tree.map(
                lambda new, old: jnp.where(_along(fresh_Z, old), new, old),
                SlotState.of(first),
                slot_state,
            )
            if not self.shares:
                cache = self._with_prompts(cache, prompts, slot_state.prompt_Z, fresh_Z)
            live_Z = slots.live_Z & ~(fresh_Z & first.ended_B)
            return dataclasses.replace(slots, live_Z=live_Z), slot_state, cache

        rows = (state.slots, state.slot_state, state.cache)
        slots, slot_state, cache = self._each(
            local,
            (*rows, self.prompts, self.pending, self.asked_M),
            like=rows,
        )
        return dataclasses.replace(
            state, slots=slots, slot_state=slot_state, cache=cache
        )

    def _with_prompts(self, cache, prompts, prompt_Z, fresh_Z) -> kv.KVCache:
        """The cache with a copy of their prompts in the fresh rows."""
        # Fresh slots first, so that the loop copies as many prompts as are wanted.
        order_Z = first_where(fresh_Z)

        def copy(i, cache):
            row = order_Z[i]
            return kv.put(cache, prompts, self.config, row=row, prompt=prompt_Z[row])

        return jax.lax.fori_loop(0, jnp.sum(fresh_Z), copy, cache)

    def compact(self, state: DecodeState, size: int) -> DecodeState:
        """The state with `size` slots a device, which hold its live rows.

        Six slots of a device, of which three rows live, to four (· has ended):

            before   9  ·  ·  7  ·  8
            after    9  7  8  ·

        There must be no more live rows than slots, and no pending rollouts.
        """

        def local(slots, slot_state, cache):
            # Live rows first and in order; ended ones fill up what is left.
            row_X = first_where(slots.live_Z)[:size]
            slots = dataclasses.replace(
                slots, row_Z=slots.row_Z[row_X], live_Z=slots.live_Z[row_X]
            )
            slot_state = jax.tree.map(lambda x: x[row_X], slot_state)
            return slots, slot_state, kv.take(cache, row_X)

        rows = (state.slots, state.slot_state, state.cache)
        slots, slot_state, cache = self._each(local, rows, like=rows)
        return dataclasses.replace(
            state, slots=slots, slot_state=slot_state, cache=cache
        )

    def write(self, out: dict, slots: Slots, t_Z, count_Z, columns: dict) -> dict:
        """`out` with the first `count` of the new columns of each live row.

        They are put at its response positions from `t_Z` on. columns: [Z, J] arrays.
        """

        def local(out, slots, t_Z, count_Z, columns):
            nowhere = out["mask_BT"].shape[0]
            for j in range(columns["mask_BT"].shape[1]):
                # Ended rows write out of bounds, which drops them: the rest of `out`
                # is padding. So do columns that a row does not keep.
                keeps_Z = slots.live_Z & (j < count_Z)
                row_Z = jnp.where(keeps_Z, slots.row_Z, nowhere)
                out = {
                    name: x.at[row_Z, t_Z + j].set(columns[name][:, j], mode="drop")
                    for name, x in out.items()
                }
            return out

        return self._each(local, (out, slots, t_Z, count_Z, columns), like=out)

    def _each(self, function, args: tuple, *, like):
        """`function(*args)` of what each device holds; what it returns is `like`."""

        def spec(x):
            if isinstance(x, kv.KVCache):
                return kv.specs(x, self.rows_over)
            return PartitionSpec(self.rows_over) if x.ndim else REPLICATED

        def specs(tree):
            # A cache is one leaf: `kv.specs` knows on which axis its arrays have rows.
            leaf = lambda x: isinstance(x, kv.KVCache)  # noqa: E731
            return jax.tree.map(spec, tree, is_leaf=leaf)

        return on_each(function, specs(args), specs(like))(*args)


def _along(flag_Z, x):
    return flag_Z.reshape(-1, *(1,) * (x.ndim - 1))
