"""LIM scores of problems, a JSONL file: a row a problem, `id` and `lim_score`."""

import json
import math
import sys
from collections.abc import Sequence

import numpy as np

from limr_jax.data import jsonl
from limr_jax.errors import InputError

# Of the rewards that scores are made of: fp32 holds sums of their squares.
LARGEST_REWARD = 1e15


def read_scores(path) -> dict[str, float]:
    """The scores of a JSONL file of {id, lim_score}, by id in the file's order.

    A null is −inf. Raises InputError, with the line's number, for what is not such a
    file.
    """
    scores = {}
    for where, problem, row in rows_by_id(path):
        if "lim_score" not in row:
            raise InputError(
                f"{where}: the field 'lim_score' is missing; "
                "python launch/lim.py score makes it"
            )
        known = number(row["lim_score"], "lim_score", where)
        scores[problem] = -math.inf if known is None else known
    return scores


def scores_of(path, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The scores of these problems: score_N, fp64, and known_N, bool.

    A problem is known if the file has its score and it is no null; else its score is
    −inf. Raises InputError where the file has a score for none of the problems.
    """
    scores = read_scores(path)
    # Absent and null are the same: −inf, which no threshold keeps.
    score_N = np.array([scores.get(problem, -math.inf) for problem in ids])
    if not np.any(np.isfinite(score_N)):
        raise InputError(
            f"{path}: has a score for none of the {len(ids)} problems, the first of "
            f"them {ids[0]!r}; give the scores of this data set"
        )
    return score_N, np.isfinite(score_N)


def rows_by_id(path):
    """Yield (place, id, row) of each line of a JSONL file; the place is for errors.

    Raises InputError where two rows have the same id, or where there is no row.
    """
    places: dict[str, str] = {}
    for where, row in jsonl.read_rows(path):
        problem = jsonl.text_field(row, "id", where, numbers=True)
        if problem in places:
            raise InputError(
                f"{where}: the id {problem!r} is also that of {places[problem]}; "
                "give every problem its own"
            )
        places[problem] = where
        yield where, problem, row
    if not places:
        raise InputError(f"{path}: holds no row; give a file with at least one")


def number(
    value, field: str, where: str, *, largest: float = sys.float_info.max
) -> float | None:
    """The value as a float, None for None; InputError where it is no finite number.

    Nor may it be beyond ±largest. field, where: what the error names, the field and its
    place in the file.
    """
    if value is None:
        return None
    # A whole number may be beyond the largest float, too.
    if not (jsonl.is_number(value) and abs(value) <= largest):
        raise InputError(
            f"{where}: {json.dumps(value)[:40]} in {field!r} is no finite number from "
            f"{-largest:.4g} to {largest:.4g}; write one, or null where it is missing"
        )
    return float(value)


def reward(value, field: str, where: str) -> float | None:
    """As `number`, within what scores can be made of: ±1e15."""
    return number(value, field, where, largest=LARGEST_REWARD)
