"""Drafts: what a row is likely to write next, looked up in what was written before.

A problem's rollouts at its last visit, and those of this step as far as they have come,
say what may follow a row's last tokens. A decode step draws the next token of the row
and, beside it, those that would follow the draft's: each with the noise of its own
position, so that a token is the same with drafts and without (SPEC-RL,
arXiv:2509.23232, without its lenience). The draft's tokens are kept while they are what
was drawn.

Axes: Z slots, K tokens of a draft, J = K + 1 tokens of a decode step, D rollouts of a
problem that are kept, T tokens of a rollout at most, N problems, P prompts of a step, G
rollouts of each, n tokens that are looked up, W of what they are looked up in.
"""

import jax
import jax.numpy as jnp

from limr_jax.rollout.types import GenerateConfig
from limr_jax.sharding import platform

LOOKED_UP = 3  # n: the last tokens of a row, or as many of them as are found
NONE = -1  # stands where there is no token; equals nothing that is drawn
_NO_END = -2  # likewise, of a row's last tokens; equals no NONE either
# Rows of a matrix product up to which more rows are nearly free: it reads the weights,
# which takes longer. RECORDS.md has a CPU's; a TPU v5e multiplies 240 FLOPs a byte.
_FREE_ROWS = {"cpu": 128, "tpu": 256}
# Share of the live rows whose draft begins right, from which on drafts are tried: in
# the mean of the last steps. Below, a step of one token of each row is quicker. By
# a TPU's bounds a step of several tokens takes .99 to 1.05 times as long (RECORDS.md),
# and a row whose draft begins right writes one token more at least. What no bound
# counts may double that.
_PAYS_FROM = {"cpu": 0.6, "tpu": 0.1}
STEPS = 8  # decode steps that the mean is of, about
PROBED = 8  # of so many steps one, if it has no drafts, looks up whether they would pay
# The table's problems are filled up to a multiple, which most slices divide.
_MULTIPLE = 256


def step_tokens(slots: int, most: int, *, int8: bool = False) -> int:
    """J of a loop over decode with so many slots of a device; at most `most`.

    int8: a decode step reads one byte a weight and multiplies in bf16, so that half as
    many rows are free. XLA:CPU casts the weights first and reads as much as ever.
    """
    return max(1, min(most, _free_rows(int8) // slots))


def most_slots(*, int8: bool = False) -> int:
    """The slots of a device up to which a loop over decode tries drafts."""
    return _free_rows(int8) // 2


def _free_rows(int8: bool) -> int:
    free = _FREE_ROWS.get(platform(), _FREE_ROWS["tpu"])
    return free // 2 if int8 and platform() != "cpu" else free


def loop_tokens(
    generation: GenerateConfig, prompts: int, devices: int
) -> tuple[int, ...]:
    """J of each loop over decode of so many prompts, that of the most slots first."""
    return tuple(
        step_tokens(size, generation.step_tokens, int8=generation.int8)
        for size in generation.slot_plan(prompts, devices).sizes
    )


def pays_from() -> float:
    """The share of rows whose draft begins right from which on drafts are tried."""
    return _PAYS_FROM.get(platform(), _PAYS_FROM["tpu"])


# --- The table, a part of the state -----------------------------------------------


def table_of(
    generation: GenerateConfig, *, problems: int, vocab_size: int
) -> jax.Array | None:
    """No rollouts yet of any problem: [N, D, T], N filled up; None: no drafts.

    int16 where the vocabulary fits, else int32.
    """
    if generation.step_tokens == 1:
        return None
    dtype = jnp.int16 if vocab_size <= jnp.iinfo(jnp.int16).max else jnp.int32
    rows = -(-problems // _MULTIPLE) * _MULTIPLE
    kept = min(generation.drafts_kept, generation.group)
    return jnp.full((rows, kept, generation.response_length), NONE, dtype)


def remember(table_NDT, ids_P, response_BT, mask_BT) -> jax.Array:
    """The table with the first D rollouts of each of these problems; within a jit.

    ids_P: the problems; of one that stands there twice the later rollout counts. Where
    a rollout has no written token the table keeps what it has: of a step's rounds each
    may write others of a problem's rollouts (samplers/allocation.py).
    """
    rows, kept, length = table_NDT.shape
    written_BT = jnp.where(mask_BT, response_BT, NONE).astype(table_NDT.dtype)
    written_PDT = written_BT.reshape(len(ids_P), -1, length)[:, :kept]
    empty_PD = jnp.all(written_PDT == NONE, axis=2)
    later_PP = jnp.triu(ids_P[:, None] == ids_P[None], k=1)
    drop_PD = jnp.any(later_PP[:, :, None] & ~empty_PD[None], axis=1) | empty_PD
    row_PD = jnp.where(drop_PD, rows, ids_P[:, None])
    place_1D = jnp.arange(written_PDT.shape[1])[None]
    return table_NDT.at[row_PD, place_1D].set(written_PDT, mode="drop")


def of_problems(table_NDT, ids_P) -> jax.Array:
    """The rollouts of these problems, int32 [P, D, T]; within a jit."""
    return table_NDT.at[ids_P].get(mode="clip").astype(jnp.int32)


# --- The lookup -------------------------------------------------------------------


def prompt_ends(prompt_PL, position_PL) -> jax.Array:
    """The last n tokens of each left-padded prompt, int32 [P, n]."""
    end_PL = jnp.where(position_PL >= 0, prompt_PL, _NO_END)
    end_Pn = end_PL[:, -LOOKED_UP:]
    short = LOOKED_UP - end_Pn.shape[1]
    return jnp.pad(end_Pn, ((0, 0), (short, 0)), constant_values=_NO_END)


def sources(rollout_XDT, end_Xn) -> jax.Array:
    """Rollouts one after another, each behind the end of its prompt: int32 [X, W].

    rollout_XDT: NONE where there is no token. A NONE stands behind each, so that no
    draft goes from one into the next.
    """
    end_XDn = jnp.broadcast_to(
        end_Xn[:, None], (*rollout_XDT.shape[:2], end_Xn.shape[1])
    )
    behind = ((0, 0), (0, 0), (0, 1))
    rollout_XDT = jnp.pad(rollout_XDT, behind, constant_values=NONE)
    joined = jnp.concatenate([end_XDn, rollout_XDT], axis=2)
    return joined.reshape(len(rollout_XDT), -1)


def look_up(source_ZW, end_Zn, tokens: int) -> jax.Array:
    """The K = `tokens` tokens that followed each row's last n, int32 [Z, K].

    The place is that at which the most of them stand, the first such; NONE where not
    even the last one does, and from the first NONE of the source on.
    """
    # match: the last 1, 2, … n tokens stand right before this place.
    matched_ZW = jnp.ones(source_ZW.shape, bool)
    count_ZW = jnp.zeros(source_ZW.shape, jnp.int32)
    for i in range(1, end_Zn.shape[1] + 1):
        before_ZW = jnp.pad(source_ZW[:, :-i], ((0, 0), (i, 0)), constant_values=NONE)
        matched_ZW &= before_ZW == end_Zn[:, -i, None]
        count_ZW += matched_ZW
    count_ZW = jnp.where(source_ZW >= 0, count_ZW, 0)  # something has to follow
    # The most, and of these the first: one maximum, for XLA:CPU's argmax is slow.
    width = source_ZW.shape[1]
    left_1W = width - 1 - jnp.arange(width, dtype=jnp.int32)[None]
    best_Z = jnp.max(count_ZW * width + left_1W, axis=1)
    found_Z, place_Z = best_Z >= width, width - 1 - best_Z % width
    at_ZK = place_Z[:, None] + jnp.arange(tokens)[None]
    draft_ZK = jnp.take_along_axis(source_ZW, at_ZK, axis=1, mode="clip")
    draft_ZK = jnp.where(found_Z[:, None] & (at_ZK < width), draft_ZK, NONE)
    unbroken_ZK = jnp.cumprod(draft_ZK >= 0, axis=1).astype(bool)
    return jnp.where(unbroken_ZK, draft_ZK, NONE)


def accepted(draft_ZK, drawn_ZJ, ends_ZJ) -> jax.Array:
    """How many of the drawn tokens each row writes, int32 [Z], 1 to J.

    Behind the first token that the draft has wrong, what was drawn is of another text;
    behind one that ends the rollout there is nothing. ends_ZJ: bool, which do.
    """
    K = draft_ZK.shape[1]
    goes_on_ZK = (draft_ZK == drawn_ZJ[:, :K]) & ~ends_ZJ[:, :K]
    return 1 + jnp.sum(jnp.cumprod(goes_on_ZK, axis=1), axis=1, dtype=jnp.int32)
