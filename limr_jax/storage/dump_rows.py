"""Rollouts as the rows of a dump: what the policy read and wrote, and its grade."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from limr_jax.data.problems import Problems


def dump_rows(
    problems: Problems,
    decode: Callable[[np.ndarray], str],
    *,
    ids_P: np.ndarray,
    response_BT: np.ndarray,
    mask_BT: np.ndarray,
    truncated_B: np.ndarray,
    reward_PG: np.ndarray,
    correct_PG: np.ndarray,
    valid_PG: np.ndarray,
    parts: Mapping[str, np.ndarray],
    reason_PG: np.ndarray | None,
    reasons: Sequence[str],
    asked_B: np.ndarray | None = None,
) -> Iterator[dict[str, Any]]:
    """Each rollout of one generation as a row of `rollout_dump.Dump.add`, by prompt.

    All arrays are NumPy's, of all hosts; rollout b is sample b % G of prompt b // G.

    problems: the training set, in the order that ids_P counts in.
    decode: token ids → text, as `Tokenizer.decode`.
    ids_P: which problem each prompt is.
    response_BT: token ids. mask_BT: bool, True up to the response's end, which is a
      prefix. truncated_B: bool, it was cut off before its end.
    reward_PG: what the learner saw. correct_PG: raw correctness. valid_PG: bool.
    parts: each part of the reward by name, [P, G], before its weight.
    reason_PG: places in `reasons`, which say why a rollout got its grade; None where
      nobody noted them.
    asked_B: bool, rollouts that were to be written; None: all. The others have no row.
    """
    group = reward_PG.shape[1]
    length_B = mask_BT.sum(axis=1)
    levels = problems.columns.get("level")
    for b, row_T in enumerate(response_BT):
        if asked_B is not None and not asked_B[b]:
            continue
        p, g = divmod(b, group)
        index = int(ids_P[p])
        yield {
            # Its name: in another set its place may be another.
            "id": problems.ids[index],
            "sample": g,
            # Of a chat the messages, with their roles.
            "prompt": problems.messages[index] or problems.prompts[index],
            "response": decode(row_T[: length_B[b]]),
            "reference": problems.answers[index],
            # Of a set that has levels: a report shows them, and reads no problems.
            **({"level": levels[index]} if levels else {}),
            "reward": reward_PG[p, g],
            **{f"reward/{name}": x_PG[p, g] for name, x_PG in parts.items()},
            "correct": correct_PG[p, g],
            "valid": valid_PG[p, g],
            "reason": None if reason_PG is None else reasons[reason_PG[p, g]],
            "truncated": truncated_B[b],
            "length": length_B[b],
        }
