"""Rollouts of all lengths in rows of one width, each prompt once a row.

A forward and backward pass costs what its columns cost, live or not, and a group's G
rollouts repeat their prompt. So responses are packed into rows of W = L + k · T columns
by first fit, longest first; a row holds the prompt of its responses once, whatever
their number, and a response sees its prompt and itself (`branch_RW`). A row has at most
Y = k · T + L / 2 predicted tokens, so logits are made at Y positions of it (at k · T a
row with one short prompt would be left unfilled). A response's last token is predicted
but never read. Only the number of rows depends on the data.

k, the full-length responses of a row, is 1 but where most responses are that long: then
2 or 3 spare prompts, for attention over more columns.

B rollouts of S = L + T columns, the last T of them the response; at most R = B packed
rows.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from limr_jax.models.layers import ROWS
from limr_jax.sharding import constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layout:
    """How packed rows are read, beside tokens, positions and segments (problems)."""

    branch_RW: jax.Array  # int32: 0 is the prompt, seen by its problem's other branches
    token_RY: jax.Array  # int32: the tokens that are predicted
    from_RY: jax.Array  # int32: the column from whose hidden state each is predicted
    # int32: where in Y the response of each begins; None: a row has one response.
    first_RY: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packing:
    """Where B rollouts stand in packed rows, and the way back; -1: nothing is there.

    S and T are the columns of a rollout's text and of its response.
    """

    source_RW: jax.Array  # int32: b · S + s, the column of the texts
    target_RY: jax.Array  # int32: b · T + t, the predicted token
    from_RY: jax.Array  # int32: as in Layout
    place_BT: jax.Array  # int32: r · Y + y, where a predicted token stands
    rows: jax.Array  # int32: rows that hold something
    problem_B: jax.Array  # int32
    text_columns: int = dataclasses.field(metadata={"static": True})  # S


class _Place(NamedTuple):
    """Where one rollout goes."""

    row: jax.Array
    prompt: jax.Array  # column at which its prompt starts
    fresh: jax.Array  # whether it brings the prompt
    response: jax.Array  # column at which its response starts
    target: jax.Array  # predicted tokens before its own


def first_fit(
    problem_B, prompt_length_B, response_length_B, *, columns: int, targets: int
) -> tuple[_Place, jax.Array]:
    """Where first fit, longest first, puts each rollout, and the number of rows used.

    A row has `columns` columns, for prompts and responses, and at most `targets`
    predicted tokens. The fields of the place have an axis B; a rollout whose response
    has length 0 is not placed.

    A problem's rollouts follow one another, the problem with the longest response
    first, so that only the rows of one problem's prompt are kept in mind.
    """
    same_BB = problem_B[:, None] == problem_B[None]
    longest_B = jnp.max(jnp.where(same_BB, response_length_B[None], 0), axis=1)
    # The last key counts most: problems by their longest response, and of a problem the
    # longest response first.
    order_B = jnp.lexsort((-response_length_B, problem_B, -longest_B))
    count = problem_B.shape[0]

    def put(carry, b):
        # Columns and predicted tokens that each row holds, and the column at which this
        # problem's prompt begins in it, -1 where it does not.
        used_R, targets_R, prompt_R, problem = carry
        prompt_R = jnp.where(problem_B[b] == problem, prompt_R, -1)
        length, prompt_length = response_length_B[b], prompt_length_B[b]
        brought_R = jnp.where(prompt_R < 0, prompt_length, 0)
        # The last token is predicted but never read, so it needs no column.
        needed_R = brought_R + jnp.maximum(length - 1, 0)
        fits_R = (used_R + needed_R <= columns) & (targets_R + length <= targets)
        # The first that fits. An empty row always does, and there is one a rollout: so
        # the rows that hold something are the first ones.
        row = jnp.argmax(fits_R).astype(jnp.int32)
        used, fresh = used_R[row], prompt_R[row] < 0
        prompt = jnp.where(fresh, used, prompt_R[row])
        place = _Place(
            row=row,
            prompt=prompt,
            fresh=fresh,
            response=used + brought_R[row],
            target=targets_R[row],
        )
        # Of a rollout that is not placed nothing may stay behind, its prompt included.
        placed = length > 0
        return (
            used_R.at[row].add(jnp.where(placed, needed_R[row], 0)),
            targets_R.at[row].add(length),
            prompt_R.at[row].set(jnp.where(placed, prompt, prompt_R[row])),
            problem_B[b],
        ), place

    zero_R = jnp.zeros((count,), jnp.int32)
    start = (zero_R, zero_R, zero_R - 1, jnp.int32(-1))
    (_, targets_R, _, _), place = jax.lax.scan(put, start, order_B)
    # The scan went in order_B; the fields go back to the rollouts' own order.
    place = jax.tree.map(
        lambda x: jnp.zeros_like(x).at[order_B].set(x, unique_indices=True), place
    )
    return place, jnp.sum(targets_R > 0, dtype=jnp.int32)


def pack(
    position_BS, problem_B, keep_B, *, response_length: int, responses: int = 1
) -> Packing:
    """The packing of the rollouts that `keep_B` is True for.

    position_BS: -1 for padding; the last `response_length` columns are the response.
    responses: full-length ones that a packed row has columns for (k).
    """
    (B, S), T = position_BS.shape, response_length
    # Small, and walked one by one: on every device the same.
    problem_B, keep_B = constrain(problem_B, None), constrain(keep_B, None)
    live_BS = constrain(position_BS >= 0, None, None)
    prompt_length_B = jnp.sum(live_BS[:, : S - T], axis=1, dtype=jnp.int32)
    length_B = jnp.sum(live_BS[:, S - T :], axis=1, dtype=jnp.int32)
    length_B = jnp.where(keep_B, length_B, 0)
    W, Y = S + (responses - 1) * T, responses * T + (S - T) // 2
    place, rows = first_fit(problem_B, prompt_length_B, length_B, columns=W, targets=Y)
    row_B1, t_T = place.row[:, None], jnp.arange(T, dtype=jnp.int32)[None]
    length_B1, response_B1 = length_B[:, None], place.response[:, None]
    # Where each column goes, as row · W + column; B · W, behind the last row, is
    # nowhere. Positions count a prompt from 0, so its left padding is not packed.
    prompt_BL = jnp.where(
        live_BS[:, : S - T] & (place.fresh & (length_B > 0))[:, None],
        row_B1 * W + place.prompt[:, None] + position_BS[:, : S - T],
        B * W,
    )
    response_BT = jnp.where(t_T < length_B1 - 1, row_B1 * W + response_B1 + t_T, B * W)
    target_BT = jnp.where(
        t_T < length_B1, row_B1 * Y + place.target[:, None] + t_T, B * Y
    )
    # A response's first token is predicted from the end of its prompt, wherever in the
    # row that lies; every other from the token before it.
    last_B1 = (place.prompt + prompt_length_B - 1)[:, None]
    from_BT = jnp.where(t_T == 0, last_B1, response_B1 + t_T - 1)
    source_BS = jnp.concatenate([prompt_BL, response_BT], axis=1)
    target_RY = _inverse(target_BT, Y)
    return Packing(
        source_RW=_inverse(source_BS, W),
        target_RY=target_RY,
        from_RY=_read(from_BT, target_RY, 0),
        place_BT=jnp.where(t_T < length_B1, target_BT, -1),
        rows=rows,
        problem_B=problem_B,
        text_columns=S,
    )


def _inverse(where_BX, columns: int):
    """Of each place in B rows, the flat index of what goes there; -1 for nothing."""
    rows, where = where_BX.shape[0], where_BX.reshape(-1)
    places = jnp.full((rows * columns,), -1, jnp.int32)
    index = jnp.arange(where.size, dtype=jnp.int32)
    # No two go to one place, nowhere included: a TPU would sort them all first.
    where = jnp.where(where < places.size, where, places.size + index)
    places = places.at[where].set(index, mode="drop", unique_indices=True)
    return places.reshape(rows, columns)


def _read(x, index_RX, empty):
    """The flat x at each index, `empty` where it is -1."""
    # -1 reads the last element, and the where leaves it out.
    return jnp.where(index_RX >= 0, x.reshape(-1)[index_RX], empty)


class Rows:
    """The packed rows i · size to (i + 1) · size − 1, and what stands in them.

    i may be traced. R is `size` here.
    """

    def __init__(self, packing: Packing, i, size: int):
        def rows(x_RY):
            part = jax.lax.dynamic_slice_in_dim(x_RY, i * size, size)
            return constrain(part, ROWS, None)

        self._packing = packing
        self._source_RW, self._target_RY = map(
            rows, (packing.source_RW, packing.target_RY)
        )
        self._from_RY = rows(packing.from_RY)

    def columns(self, x_BS, empty):
        """What stands in these rows' columns, [size, W]; `empty` where nothing does.

        x_BS: a value for each column of the rollouts' texts.
        """
        return _read(x_BS, self._source_RW, empty)

    def targets(self, x_BT, empty):
        """What these rows' predicted tokens have, [size, Y]; `empty` where none is.

        x_BT: a value for each token of the rollouts' responses.
        """
        return _read(x_BT, self._target_RY, empty)

    def segment_RW(self):
        """The problem of each column."""
        packing = self._packing
        # Where nothing stands this is some problem; position -1 hides the column.
        return packing.problem_B[self._source_RW // packing.text_columns]

    def layout(self, tokens_BS, target_BT=None) -> Layout:
        """How these rows are read.

        target_BT: the predicted tokens, where they are not the last T of tokens_BS.
        """
        S, T = self._packing.text_columns, self._packing.place_BT.shape[1]
        rollout_RW, column_RW = jnp.divmod(self._source_RW, S)
        # Token t of a response stands t places behind its first; what is empty is its
        # own first, lest it stand in another's.
        place_1Y = jnp.arange(self._target_RY.shape[1], dtype=jnp.int32)[None]
        behind_RY = jnp.where(self._target_RY >= 0, self._target_RY % T, 0)
        return Layout(
            # Branch b + 1 is rollout b's response. -1 has rollout -1: branch 0.
            branch_RW=jnp.where(column_RW < S - T, 0, rollout_RW + 1),
            token_RY=self.targets(
                tokens_BS[:, S - T :] if target_BT is None else target_BT, 0
            ),
            from_RY=self._from_RY,
            first_RY=place_1Y - behind_RY,
        )


def over_rows(
    function,
    tokens_BS,
    position_BS,
    problem_B,
    target_BT=None,
    *,
    response_length: int,
    responses: int,
    size: int,
):
    """A function of packed rows, applied to rollouts: fp32 numbers of a token, [B, T].

    `function(tokens_RW, position_RW, segment_RW, layout) → x_RY` sees `size` packed
    rows at a time (0: all at once). It gives one array, or a tuple of them, and this
    function does as it does. The numbers are 0 at padding. responses:
    full-length ones that a packed row has columns for. target_BT: the predicted tokens,
    where they are not the last T = `response_length` of tokens_BS.
    """
    all_B = jnp.ones(tokens_BS.shape[:1], bool)
    packing = pack(
        position_BS,
        problem_B,
        all_B,
        response_length=response_length,
        responses=responses,
    )
    B, Y = packing.target_RY.shape
    size = size or B

    def of_rows(i):
        rows = Rows(packing, i, size)
        return function(
            rows.columns(tokens_BS, 0),
            rows.columns(position_BS, -1),
            rows.segment_RW(),
            rows.layout(tokens_BS, target_BT),
        )

    def write_rows(i, so_far):
        return jax.tree.map(
            lambda x_RY, part_RY: jax.lax.dynamic_update_slice_in_dim(
                x_RY, part_RY, i * size, axis=0
            ),
            so_far,
            of_rows(i),
        )

    # Rows beyond those that hold something are never read. The count is traced.
    count = -(-packing.rows // size)
    shapes = jax.eval_shape(of_rows, 0)
    empty = jax.tree.map(lambda _: jnp.zeros((B, Y), jnp.float32), shapes)
    so_far = jax.lax.fori_loop(0, count, write_rows, empty)
    return jax.tree.map(lambda x_RY: _read(x_RY, packing.place_BT, 0.0), so_far)
