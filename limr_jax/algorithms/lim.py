"""Learning impact of a problem: LIM and LIMR (arXiv:2502.11886).

    r_avg^k = 1/N Σ_i r_i^k
    s_i     = 1 − Σ_k (r_i^k − r_avg^k)² / Σ_k (1 − r_avg^k)²
    keep i  ⇔  s_i ≥ θ,   θ = 0.6

r_i^k, the curve, is the mean reward (or accuracy) of problem i in epoch k.

Two curves that teach nothing: a problem that is always solved scores 0. One that is
never solved scores 1 − Σ_k (r_avg^k)² / Σ_k (1 − r_avg^k)². At r_avg = .387 throughout
that is θ, and below it θ keeps every problem that nobody can solve. So it did where
half of the problems were beyond the model: 1,024 of 1,345 kept, which learned less than
as many at random (configs/RECORDS.md, the arena).

Departures:
* The paper writes s_i > θ; its 1,389 problems are those with s_i ≥ 0.60, where s_i had
  been rounded to two decimals. `keep` has ≥; round first to repeat the paper.
* Σ_k (1 − r_avg^k)² → 0 as all is solved: a tiny number is added above and below, so
  that a curve of ones still scores exactly 0.
* Missing values. The released "forward fill" fills a gap from the epoch *after* it, by
  one step, and leaves out every problem that still has a gap: `drop(*backfill(…))`.
  The online sampler carries the last known value instead: `carry`. Cells still missing
  (before a problem's first visit) are left out of r_avg and of that problem's sums.
* Online (ours): weights from the scores so far, in place of one subset after 21 epochs.
* LINEAR has no published formula ("steady improvement over epochs"): `linear_score` is
  this project's reading of it. RAND is a random draw and needs no score.
"""

import jax
import jax.numpy as jnp


def curve(sum_NE: jax.Array, count_NE: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The reward curves r_i^k of N problems over E epochs: value_NE, seen_NE.

    sum_NE and count_NE: of a problem's valid rewards in an epoch. seen_NE is False
    where there is none, and the value then 0.
    """
    return sum_NE / jnp.maximum(count_NE, 1), count_NE > 0


def backfill(value_NE: jax.Array, seen_NE: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Curves in which a missing cell has the next epoch's value: value_NE, seen_NE.

    The cell stays missing where the next one is missing too. It is the "forward fill"
    of LIMR's released code.
    """
    # Nothing comes after the last epoch: it has itself as its next, and stays as it is.
    later_NE = jnp.concatenate([value_NE[:, 1:], value_NE[:, -1:]], axis=1)
    later_seen_NE = jnp.concatenate([seen_NE[:, 1:], seen_NE[:, -1:]], axis=1)
    return jnp.where(seen_NE, value_NE, later_NE), seen_NE | later_seen_NE


def carry(value_NE: jax.Array, seen_NE: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Curves in which a missing cell has the last known value: value_NE, seen_NE.

    An epoch in which no problem was seen stays missing, and so does a cell before a
    problem's first visit.
    """
    epoch_1E = jnp.arange(value_NE.shape[1])[None]
    # The last epoch with a value up to this one; −1 before the first.
    last_NE = jax.lax.cummax(jnp.where(seen_NE, epoch_1E, -1), axis=1)
    carried_NE = jnp.take_along_axis(value_NE, jnp.maximum(last_NE, 0), axis=1)
    # Else values would be carried into epochs that nobody has seen, such as those to
    # come.
    begun_1E = jnp.any(seen_NE, axis=0, keepdims=True)
    return carried_NE, (last_NE >= 0) & begun_1E


def drop(value_NE: jax.Array, seen_NE: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Curves without the problems that have any cell missing: value_NE, seen_NE.

    Such a problem counts as never seen, as in LIMR's released code.
    """
    whole_N1 = jnp.all(seen_NE, axis=1, keepdims=True)
    return value_NE, seen_NE & whole_N1


def terms(value_NE: jax.Array, seen_NE: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two sums of the LIM score over these epochs: apart_N and room_N, fp32.

    They are Σ_k (r_i^k − r_avg^k)² and Σ_k (1 − r_avg^k)² (arXiv:2502.11886). A later
    epoch's terms are added to them; that is all an online score has to keep.
    """
    count_1E = jnp.sum(seen_NE, axis=0, keepdims=True)
    total_1E = jnp.sum(jnp.where(seen_NE, value_NE, 0), axis=0, keepdims=True)
    # r_avg^k, over the problems that epoch k has seen.
    mean_1E = total_1E / jnp.maximum(count_1E, 1)
    apart_N = jnp.sum(jnp.where(seen_NE, (value_NE - mean_1E) ** 2, 0), axis=1)
    room_N = jnp.sum(jnp.where(seen_NE, (1 - mean_1E) ** 2, 0), axis=1)
    return apart_N, room_N


def score_of_terms(
    apart_N: jax.Array, room_N: jax.Array, *, epsilon: float = 1e-8
) -> jax.Array:
    """The LIM scores s_N from the sums that `terms` gives (arXiv:2502.11886).

    epsilon, added to both sums, guards the division where every problem is solved.
    """
    return 1 - (apart_N + epsilon) / (room_N + epsilon)


def score(
    value_NE: jax.Array, seen_NE: jax.Array, *, epsilon: float = 1e-8
) -> jax.Array:
    """The LIM scores s_N of reward curves (arXiv:2502.11886).

    A score is at most 1 and unbounded below; −inf for a problem without any cell.
    value_NE: mean reward in each epoch, 0 to 1; seen_NE: bool, the cell is not missing.
    """
    apart_N, room_N = terms(value_NE, seen_NE)
    score_N = score_of_terms(apart_N, room_N, epsilon=epsilon)
    return jnp.where(jnp.any(seen_NE, axis=1), score_N, -jnp.inf)


def linear_score(value_NE: jax.Array, seen_NE: jax.Array) -> jax.Array:
    """The LINEAR scores of reward curves, fp32 [N]: correlation with the epoch.

    They are this project's reading of a baseline without a published formula
    (arXiv:2502.11886). value_NE and seen_NE are as for `score`. The score is 1 for a
    straight line upwards, −1 downwards, 0 for a flat curve or a single cell; −inf for a
    problem without any cell. Keep those of at least θ = 0.7.
    """
    epoch_1E = jnp.arange(value_NE.shape[1], dtype=value_NE.dtype)[None]
    low_N1 = jnp.min(jnp.where(seen_NE, value_NE, jnp.inf), axis=1, keepdims=True)
    # From the smallest value, so that a flat curve is exactly 0 and not rounding.
    above_NE = jnp.where(seen_NE, value_NE - low_N1, 0)
    count_N1 = jnp.maximum(jnp.sum(seen_NE, axis=1, keepdims=True), 1)
    mean_N1 = jnp.sum(above_NE, axis=1, keepdims=True) / count_N1
    middle_N1 = jnp.sum(jnp.where(seen_NE, epoch_1E, 0), axis=1, keepdims=True)
    rise_NE = jnp.where(seen_NE, above_NE - mean_N1, 0)
    run_NE = jnp.where(seen_NE, epoch_1E - middle_N1 / count_N1, 0)
    # Pearson's r of value and epoch: Σ rise · run / √(Σ rise² · Σ run²).
    squares_N = jnp.sum(rise_NE**2, axis=1) * jnp.sum(run_NE**2, axis=1)
    flat_N = squares_N == 0
    products_N = jnp.sum(rise_NE * run_NE, axis=1)
    score_N = products_N / jnp.sqrt(jnp.where(flat_N, 1, squares_N))  # 0 / 1 if flat
    return jnp.where(jnp.any(seen_NE, axis=1), score_N, -jnp.inf)


def keep(score_N: jax.Array, *, threshold: float) -> jax.Array:
    """Which problems LIM keeps offline: bool keep_N, s ≥ θ (arXiv:2502.11886).

    For the paper's own 1,389 problems give `jnp.round(score_N, 2)`.
    """
    return score_N >= threshold


def threshold_weight(
    score_N: jax.Array, ever_seen_N: jax.Array, *, threshold: float, floor: float
) -> jax.Array:
    """The weight of each problem in an online draw, fp32 weight_N: 1 or `floor`.

    It is 1 for a score of `threshold` or more and for a never-seen problem.
    """
    return jnp.where((score_N >= threshold) | ~ever_seen_N, 1.0, floor)


def softmax_weight(
    score_N: jax.Array, ever_seen_N: jax.Array, *, temperature: float, floor: float
) -> jax.Array:
    """The weight of each problem in an online draw, fp32 weight_N ∝ exp(s/temperature).

    It is 1 for the best score, and at least `floor`. temperature: in units of the
    score. A never-seen problem has weight 1, as the best one has.
    """
    best = jnp.max(jnp.where(ever_seen_N, score_N, -jnp.inf))
    best = jnp.maximum(best, jnp.finfo(score_N.dtype).min)  # −inf − −inf is nan
    below_N = jnp.where(ever_seen_N, score_N - best, 0)
    # A never-seen problem has 0 below the best, so exp gives it the best one's weight.
    return jnp.maximum(jnp.exp(below_N / temperature), floor)
