"""Fixed subsets of a training set, as launch/arena.py compares them with all of it.

LIM        problems whose curve over the probe's epochs follows the average
           (arXiv:2502.11886): a score of at least .6
RAND       as many at random
LIM-16     the 16.3 % of the largest scores, the share that LIMR kept of its problems:
           where a threshold keeps nearly all, or nearly none
RAND-16    as many at random
std        as many, of the largest standard deviation over the epochs
           (arXiv:2504.20571)
hardest    the tenth that the base model fails most (arXiv:2508.14094); of equal ones
           the first, and with few responses many are equal
"""

from collections.abc import Sequence

import numpy as np

from limr_jax.studies import reward_curves
from limr_jax.studies.reward_curves import Curves

THRESHOLD = 0.6  # LIMR's
SHARE = 1389 / 8523  # that LIMR kept
NAMES = ("LIM", "RAND", "LIM-16", "RAND-16", "std", "hardest")


def choose(
    ids: Sequence[str], curves: Curves, responses: Curves, *, seed: int
) -> dict[str, list[int]]:
    """Name → places in `ids` of the problems that are kept, in their order.

    curves: of a probe on all problems. responses: of the base model, several a problem.
    seed: of RAND. LIM's set may be empty; RAND and std then have one problem.
    """
    lim_N = reward_curves.score(curves, missing="carry").score_N
    kept_by_lim_N = lim_N >= THRESHOLD
    count = max(1, int(kept_by_lim_N.sum()))
    std_N = reward_curves.score(curves, missing="carry", name="std").score_N
    fails_N = reward_curves.score(responses, missing=None, name="hardest").score_N
    tenth = max(1, len(responses.ids) // 10)
    share = max(1, round(SHARE * len(curves.ids)))

    def at_random(size: int) -> np.ndarray:
        return reward_curves.keep_random(lim_N, size, seed=seed)

    kept = {
        "LIM": (curves.ids, kept_by_lim_N),
        "RAND": (curves.ids, at_random(count)),
        "LIM-16": (curves.ids, reward_curves.keep_top(lim_N, share)),
        "RAND-16": (curves.ids, at_random(share)),
        "std": (curves.ids, reward_curves.keep_top(std_N, count)),
        "hardest": (responses.ids, reward_curves.keep_top(fails_N, tenth)),
    }
    return {name: _places(ids, *chosen) for name, chosen in kept.items()}


def _places(ids: Sequence[str], of: Sequence[str], keep_N: np.ndarray) -> list[int]:
    chosen = {problem for problem, keep in zip(of, keep_N, strict=True) if keep}
    return [place for place, problem in enumerate(ids) if problem in chosen]
