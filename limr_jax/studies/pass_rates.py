"""What old rollouts say of today's pass rates: estimates, and how far they are off.

A problem's rollouts were written by the policies π_i of earlier steps. Its pass rate
under today's policy π can be estimated from them, without a fresh one
(arXiv:2605.09188):

    log w_i = clip(Σ_t log π(y_t) − log π_i(y_t), ±5)
    p̂ = Σ w r / Σ w,   ESS = (Σ w)² / Σ w²;   the raw mean of r where ESS < 2

That is self-normalised importance sampling (SNIS). It asks for one forward pass over
each old rollout, where the decayed Beta posterior of `algorithms.informative` and BOTS
ask for none. This module makes the estimates; old_rollouts.py makes their arrays, and
pass_rate_errors.py holds them against fresh samples. What came of it, and why there is
no such sampler, is in samplers/README.md.

Departure: the paper's text was not at hand; formulas are those of this project's notes.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betaincinv, ndtri

from limr_jax.algorithms import bots, informative, mopps

CLIP = 5.0  # of a rollout's log ratio, nats
LEAST_ESS = 2.0  # below it the raw mean is taken
LEVEL = 0.95  # of intervals
DECAYS = (0.0, 0.25, 0.5, 0.7, 0.9, 1.0)
FRESH = (1, 2, 4, 8, 16)  # fresh rollouts a problem that the cost might buy instead
WINDOWS = {"last visit": 1, "last 2": 2, "last 4": 4, "all": None}


@dataclasses.dataclass(frozen=True)
class Case:
    """What is known of N problems after one step of one run."""

    ids_XP: np.ndarray  # int: the problems that steps 1 to X drew
    correct_XPG: np.ndarray  # bool
    log_ratio_XPG: np.ndarray  # log π of today − log π_i, summed over tokens, unclipped
    fresh_NF: np.ndarray  # bool: fresh samples that an estimate may use
    truth_NK: np.ndarray  # bool: other fresh samples, which it is held against


class Visits(NamedTuple):
    """The rollouts of each problem, visit 0 the newest of V."""

    seen_NV: np.ndarray  # bool: there was such a visit
    correct_NVG: np.ndarray  # bool
    log_ratio_NVG: np.ndarray


class RateEstimate(NamedTuple):
    """A pass rate a problem, its 95 % interval, and the mixed chance to draw by."""

    rate_N: np.ndarray
    low_N: np.ndarray
    high_N: np.ndarray
    chance_N: np.ndarray  # that a group of G has a right and a wrong rollout


def visits(case: Case) -> Visits:
    """The rollouts of a case by problem, newest visit first."""
    problems, (_, _, group) = len(case.truth_NK), case.correct_XPG.shape
    steps_of = [[] for _ in range(problems)]
    for step in reversed(range(len(case.ids_XP))):
        for place, problem in enumerate(case.ids_XP[step]):
            steps_of[problem].append((step, place))
    most = max(map(len, steps_of))
    seen_NV = np.zeros((problems, most), bool)
    correct_NVG = np.zeros((problems, most, group), bool)
    log_ratio_NVG = np.zeros((problems, most, group))
    for problem, places in enumerate(steps_of):
        for visit, place in enumerate(places):
            seen_NV[problem, visit] = True
            correct_NVG[problem, visit] = case.correct_XPG[place]
            log_ratio_NVG[problem, visit] = case.log_ratio_XPG[place]
    return Visits(seen_NV, correct_NVG, log_ratio_NVG)


class WeightedRates(NamedTuple):
    """SNIS of each problem, and the raw mean of the same rollouts; 1/2 without any."""

    rate_N: np.ndarray
    ess_N: np.ndarray
    raw_N: np.ndarray
    mean_weight_N: np.ndarray  # 1 in expectation, but for the clip


def snis(correct_NR, log_ratio_NR, used_NR) -> WeightedRates:
    """Pass rates by self-normalised importance sampling, whatever their ESS.

    used_NR: bool, the rollouts that count.
    """
    clipped_NR = np.clip(log_ratio_NR, -CLIP, CLIP)
    weight_NR = np.where(used_NR, np.exp(clipped_NR), 0.0)
    total_N, count_N = weight_NR.sum(axis=1), used_NR.sum(axis=1)
    square_N = np.square(weight_NR).sum(axis=1)
    with np.errstate(invalid="ignore"):  # 0 / 0 where there is no rollout
        rate_N = (weight_NR * correct_NR).sum(axis=1) / total_N
        raw_N = (used_NR & correct_NR).sum(axis=1) / count_N
        ess_N = np.square(total_N) / square_N
        mean_weight_N = total_N / count_N
    known_N = count_N > 0
    return WeightedRates(
        rate_N=np.where(known_N, rate_N, 0.5),
        ess_N=np.where(known_N, ess_N, 0.0),
        raw_N=np.where(known_N, raw_N, 0.5),
        mean_weight_N=np.where(known_N, mean_weight_N, 1.0),
    )


def window_of(seen: Visits, count: int | None) -> tuple[np.ndarray, ...]:
    """Arguments of `snis`: of each problem's newest `count` visits; None: of all."""
    group = seen.correct_NVG.shape[2]
    flat = [x[:, :count].reshape(len(x), -1) for x in seen[1:]]
    return *flat, np.repeat(seen.seen_NV[:, :count], group, axis=1)


def of_rate(rate_N, size_N, *, group: int) -> RateEstimate:
    """An estimate that is a share of `size_N` rollouts, with Wilson's interval."""
    z = float(ndtri((1 + LEVEL) / 2))
    n = np.maximum(size_N, 1e-9)
    center_N = (rate_N + z**2 / (2 * n)) / (1 + z**2 / n)
    spread_N = np.sqrt(rate_N * (1 - rate_N) / n + z**2 / (4 * n**2))
    half_N = z * spread_N / (1 + z**2 / n)
    chance_N = 1 - rate_N**group - (1 - rate_N) ** group
    return RateEstimate(rate_N, center_N - half_N, center_N + half_N, chance_N)


def of_counts(right_N, wrong_N, *, group: int) -> RateEstimate:
    """An estimate that is Beta(right, wrong), with its equal-tailed interval."""
    a, b = (np.asarray(x, np.float64) for x in (right_N, wrong_N))
    tail = (1 - LEVEL) / 2
    chance_N = np.asarray(
        informative.mixed_chance(
            *(np.asarray(x, np.float32) for x in (a, b)), group=group
        )
    )
    return RateEstimate(
        a / (a + b), betaincinv(a, b, tail), betaincinv(a, b, 1 - tail), chance_N
    )


@jax.jit
def _beta_of(case_arrays, state, decay):
    """The decayed Beta after all steps of a case."""

    def step(state, drawn):
        ids_P, correct_PG = drawn
        valid_PG = jnp.ones_like(correct_PG)
        return informative.update(state, ids_P, correct_PG, valid_PG, decay=decay), None

    return jax.lax.scan(step, state, case_arrays)[0]


@jax.jit
def _bought(state, correct_NF, count, decay):
    """The decayed Beta after a visit more of every problem, of `count` rollouts."""
    every_N = jnp.arange(len(correct_NF))
    valid_NF = jnp.broadcast_to(
        jnp.arange(correct_NF.shape[1]) < count, correct_NF.shape
    )
    return informative.update(state, every_N, correct_NF, valid_NF, decay=decay)


def beta_counts(case: Case, *, decay: float, fresh: int = 0):
    """(right_N, wrong_N) of the decayed Beta after all steps and so many fresh ones.

    The fresh rollouts are one visit more of every problem. MoPPS has the same
    posterior, with prior 1.
    """
    state = informative.init(len(case.truth_NK))
    state = _beta_of((case.ids_XP, case.correct_XPG), state, decay)
    if fresh:
        state = _bought(state, case.fresh_NF, fresh, decay)
    return np.asarray(state.right_N), np.asarray(state.wrong_N)


@jax.jit
def _bots_of(case_arrays, state):
    def step(state, drawn):
        ids_P, correct_PG = drawn
        valid_PG = jnp.ones_like(correct_PG)
        return bots.update(
            state, ids_P, correct_PG, valid_PG, decay=0.9, prior=1.0, rho=0.1
        ), None

    return jax.lax.scan(step, state, case_arrays)[0]


def bots_counts(case: Case):
    """(right_N, wrong_N) of BOTS with the defaults of configs/base.py."""
    state = mopps.init(len(case.truth_NK))
    state = _bots_of((case.ids_XP, case.correct_XPG), state)
    return np.asarray(state.alpha_N), np.asarray(state.beta_N)


def beta_name(decay: float, fresh: int = 0) -> str:
    """The name of a decayed Beta among the estimates."""
    bought = f", and {fresh} fresh" if fresh else ""
    return f"Beta, decay {decay}{bought}"


def estimates(case: Case) -> dict[str, RateEstimate]:
    """Every estimate of the case's pass rates, by name."""
    seen, group = visits(case), case.correct_XPG.shape[2]
    estimate_of = {}
    for window, count in WINDOWS.items():
        correct_NR, log_ratio_NR, used_NR = window_of(seen, count)
        weighted = snis(correct_NR, log_ratio_NR, used_NR)
        size_N = used_NR.sum(axis=1)
        rate_N, ess_N = weighted.rate_N, weighted.ess_N
        ruled_N = np.where(ess_N < LEAST_ESS, weighted.raw_N, rate_N)
        estimate_of[f"raw mean, {window}"] = of_rate(
            weighted.raw_N, size_N, group=group
        )
        estimate_of[f"SNIS, {window}"] = of_rate(ruled_N, ess_N, group=group)
        # What ESS means: so many rollouts of today's policy. With a prior few of them
        # say little, so no rule is needed for these.
        estimate_of[f"SNIS as counts, {window}"] = of_counts(
            1 + ess_N * rate_N, 1 + ess_N * (1 - rate_N), group=group
        )
    for decay in DECAYS:
        for fresh in (0, *FRESH):
            right_N, wrong_N = beta_counts(case, decay=decay, fresh=fresh)
            estimate_of[beta_name(decay, fresh)] = of_counts(
                right_N, wrong_N, group=group
            )
    right_N, wrong_N = bots_counts(case)
    estimate_of["BOTS"] = of_counts(right_N, wrong_N, group=group)
    eight_N = case.fresh_NF[:, :group].mean(axis=1)
    estimate_of[f"{group} fresh alone"] = of_rate(eight_N, group, group=group)
    return estimate_of
