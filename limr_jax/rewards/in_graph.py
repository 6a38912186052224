"""reward=token: the verifier on the devices, where answers are equal as tokens.

For tasks whose answer can be compared as tokens the whole step stays on the devices,
as one jitted program. What has to be read as mathematics, or by code of a user's, is
graded by `host_grader`, which has the same interface: (Rollout, PromptBatch) → Graded.

The answer is what stands between the *last* answer phrase and the end token, all of it.
"""

import jax
import jax.numpy as jnp

from limr_jax.data.prompts import PromptBatch
from limr_jax.rewards.types import CODE, Graded
from limr_jax.rollout.types import Rollout


def grade(
    rollout: Rollout,
    prompts: PromptBatch,
    *,
    phrase: tuple[int, ...],
    known: bool = True,
) -> Graded:
    """The grades of P · G rollouts: 1 where the answer's tokens are the reference's.

    phrase: see `verify`. known: False for reward=none, which makes every rollout
    invalid and leaves only whether it is well formed. A problem whose reference has no
    tokens makes its rollouts invalid.
    """
    group = rollout.group
    right_B, well_formed_B = verify(
        rollout.response_BT,
        rollout.mask_BT,
        rollout.truncated_B,
        jnp.repeat(prompts.answer_PA, group, axis=0),
        jnp.repeat(prompts.answer_length_P, group),
        phrase=phrase,
    )
    right_PG = (right_B & known).reshape(-1, group).astype(jnp.float32)
    well_formed_PG = well_formed_B.reshape(-1, group)
    # Whoever writes nothing after the phrase would be right by an empty reference.
    empty_PG = jnp.repeat(prompts.answer_length_P == 0, group).reshape(-1, group)
    answer_reason_PG = jnp.where(well_formed_PG, CODE["graded"], CODE["no_answer"])
    reason_PG = jnp.where(empty_PG, CODE["no_reference"], answer_reason_PG)
    if not known:
        reason_PG = jnp.full_like(reason_PG, CODE["no_reward"])
    valid_PG = known & ~empty_PG
    if rollout.asked_B is not None:
        valid_PG &= rollout.asked_B.reshape(-1, group)
    return Graded(
        reward_PG=right_PG,
        correct_PG=right_PG,
        valid_PG=valid_PG,
        well_formed_PG=well_formed_PG,
        reason_PG=reason_PG.astype(jnp.int8),
    )


def verify(
    response_BT: jax.Array,
    mask_BT: jax.Array,
    truncated_B: jax.Array,
    answer_BA: jax.Array,
    answer_length_B: jax.Array,
    *,
    phrase: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
    """(right_B, well_formed_B), both bool.

    response_BT: token ids, the end token included, where mask_BT. truncated_B: no end
    token came. answer_BA: the reference's token ids, answer_length_B of them.
    phrase: the token ids that introduce an answer, at least one.
    well_formed_B: ended by an end token and holds the phrase.
    """
    one = lambda *row: _verify_one(*row, phrase=phrase)  # noqa: E731
    return jax.vmap(one)(response_BT, mask_BT, truncated_B, answer_BA, answer_length_B)


def _verify_one(response_T, mask_T, truncated, answer_A, answer_length, *, phrase):
    """`verify` for one response: two scalars."""
    T, A = response_T.shape[0], answer_A.shape[0]
    length = jnp.sum(mask_T)  # the end token included
    position_T = jnp.arange(T)
    # starts_T[t]: the phrase stands at t … t + len(phrase) − 1.
    starts_T = position_T + len(phrase) <= length
    # A roll wraps the row's beginning round to its end, but no phrase that would run
    # over `length` is left in starts_T.
    for offset, token in enumerate(phrase):
        starts_T &= jnp.roll(response_T, -offset) == token
    # Where the last phrase ends; without one it means nothing: well_formed is False.
    begin = jnp.max(jnp.where(starts_T, position_T, -1)) + len(phrase)
    well_formed = jnp.any(starts_T) & ~truncated
    position_A = jnp.arange(A)
    # Clipped: beyond the row are only columns past answer_length, or `ends` is False.
    after_phrase_A = response_T[jnp.clip(begin + position_A, 0, T - 1)]
    same_A = (after_phrase_A == answer_A) | (position_A >= answer_length)
    ends = begin + answer_length == length - 1  # then comes the end token alone
    return well_formed & ends & jnp.all(same_A), well_formed
