"""The figures of an evaluation: accuracy, pass@k, maj@k."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from limr_jax.evaluation.evaluator import Evaluation, ungradable


class Figure(NamedTuple):
    """A figure of N problems: its value is Σ part / Σ whole."""

    part_N: np.ndarray
    whole_N: np.ndarray

    @property
    def value(self) -> float:
        """Not a number where the whole is nothing."""
        if not self.whole_N.any():
            return math.nan
        return float(self.part_N.sum() / self.whole_N.sum())


def pass_at_k(correct: np.ndarray, total: np.ndarray, k: int) -> np.ndarray:
    """The unbiased pass@k of each problem: 1 − C(n − c, k) / C(n, k), 0 to 1.

    It is the chance that one of k draws is right (arXiv:2107.03374), from `correct`, c
    right responses, of `total`, n ≥ k responses.
    """
    # [N, 1], against the k factors below.
    wrong, total = np.asarray(total - correct)[..., None], np.asarray(total)[..., None]
    # A product of k factors: binomials of large n would overflow.
    i = np.arange(k)
    # C(n − c, k) / C(n, k) = Π (n − c − i) / (n − i) over i < k. With fewer than k
    # wrong ones a factor is 0, and none may fall below it.
    return 1.0 - np.prod(np.maximum(wrong - i, 0) / (total - i), axis=-1)


def maj_at_k(vote_Nk: np.ndarray, correct_Nk: np.ndarray) -> np.ndarray:
    """The maj@k of each problem, fp64 [N]: how right the majority of its responses is.

    vote_Nk: responses that give the same answer have the same number, −1 has none. The
    answer with most votes counts; several with most each count their equal share, as
    an even draw among them would on average, whatever the responses' order. 0 where no
    response has an answer.
    """
    # [N, k, k]: whether i and j gave one answer; a vote of −1 agrees with none.
    same_Nkk = (vote_Nk[:, :, None] == vote_Nk[:, None, :]) & (vote_Nk >= 0)[..., None]
    votes_Nk = same_Nkk.sum(axis=2)
    wins_Nk = (votes_Nk == votes_Nk.max(axis=1, keepdims=True)) & (votes_Nk > 0)
    # Those who voted for one answer share its weight of 1.
    weight_Nk = wins_Nk / np.maximum(votes_Nk, 1)
    # The sum of weights is how many answers tie for the most votes.
    return (weight_Nk * correct_Nk).sum(axis=1) / np.maximum(weight_Nk.sum(axis=1), 1)


def right(result: Evaluation) -> np.ndarray:
    """The correctness of each response, fp64 [N, k], 0 to 1; 0 where it is ungradable.

    In training such a rollout is left out. Here it counts as wrong: left out, it would
    raise a policy's figures, the more of its wrong answers are of that kind.
    """
    return np.where(result.valid_Nk, result.correct_Nk, 0.0).astype(np.float64)


def figures(result: Evaluation) -> dict[str, Figure]:
    """The figures of an evaluation by name.

    Every response counts, an ungradable one as wrong. There is a pass@j for each j of
    2, 4, 8, … up to k, and for k.
    """
    right_Nk, k = right(result), result.correct_Nk.shape[1]
    formed_Nk = result.well_formed_Nk
    right_N, formed_N = right_Nk.sum(axis=1), formed_Nk.sum(axis=1)
    all_N = np.full(len(right_N), k)
    right_and_formed_N = (right_Nk * formed_Nk).sum(axis=1)
    by_name = {
        "accuracy": Figure(right_N, all_N),
        "accuracy_well_formed": Figure(right_and_formed_N, formed_N),
        "well_formed": Figure(formed_N, all_N),
        "truncated_share": Figure(result.truncated_Nk.sum(axis=1), all_N),
        "ungradable_share": Figure((~result.valid_Nk).sum(axis=1), all_N),
        "response_length": Figure(result.length_Nk.sum(axis=1), all_N),
    }
    ones_N = np.ones(len(right_N))
    # 2, 4, … up to k, and k itself; but for 1, whose pass@1 is the accuracy.
    for j in sorted({2**i for i in range(1, k.bit_length())} | {k} - {1}):
        by_name[f"pass_at_{j}"] = Figure(pass_at_k(right_N, all_N, j), ones_N)
    return by_name


def summary(result: Evaluation, levels: Sequence | None = None) -> dict[str, float]:
    """The values of an evaluation's figures by name, accuracy by level among them.

    levels: of each problem, None where it has none. A share of nothing (where no
    response is well formed) is not a number. Ungradable responses are also counted by
    reason, where there are any.
    """
    by_name = figures(result)
    count = result.valid_Nk.size
    for reason, number in ungradable(result).items():
        figure = Figure(np.array([number]), np.array([count]))
        by_name[f"ungradable/{reason}"] = figure
    right_N, all_N = by_name["accuracy"]
    for level in sorted({x for x in levels or () if x is not None}, key=str):
        at_N = np.array([x == level for x in levels])
        figure = Figure(right_N * at_N, all_N * at_N)
        by_name[f"accuracy_level_{level}"] = figure
    return {name: figure.value for name, figure in by_name.items()}
