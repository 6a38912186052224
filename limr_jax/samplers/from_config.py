"""Config → the prompt sampler of a run.

`SAMPLERS` is the one table of what `sampler.name` may be: a sampler is its own file in
this folder and a row of the table, and its fields stand in configs/base.py.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.algorithms.lim import softmax_weight, threshold_weight
from limr_jax.config import limits
from limr_jax.data.problems import Problems
from limr_jax.errors import InputError, choose
from limr_jax.platform import resolve
from limr_jax.prng import stream_key
from limr_jax.samplers import importance, score_file
from limr_jax.samplers.adarft import adarft
from limr_jax.samplers.allocation import Budget, allocated
from limr_jax.samplers.bots import bots
from limr_jax.samplers.cdas import cdas
from limr_jax.samplers.curriculum import by_level
from limr_jax.samplers.dps import dps
from limr_jax.samplers.greso import greso
from limr_jax.samplers.group_filter import GROUP_FILTERS, in_rounds
from limr_jax.samplers.informative import informative
from limr_jax.samplers.interface import PromptSampler
from limr_jax.samplers.lim import online_lim
from limr_jax.samplers.mopps import mopps
from limr_jax.samplers.prioritized import prioritized
from limr_jax.samplers.uniform import uniform
from limr_jax.samplers.weighted import weighted

_CDAS_COUNTS = {"paper": 0, "code": 1}  # what the starting difficulty weighs


@dataclasses.dataclass(frozen=True)
class Draws:
    """What every sampler is made from, beside the fields of its own."""

    data: Problems
    prompts: int  # P, problems that a step draws
    group: int  # G, rollouts of a problem
    key: jax.Array  # of the first epoch's order, where there is one
    max_rounds: int = 1  # draws that a step may take, of P problems each

    @property
    def problems(self) -> int:
        """N, the problems of the data set."""
        return len(self.data)


def group_filter(config) -> str:
    """The name in `GROUP_FILTERS` that the config asks for."""
    return SAMPLERS[config.sampler.name].groups or config.filter.groups


def make_sampler(
    section,
    data: Problems,
    *,
    prompts: int,
    group: int,
    seed: int,
    groups: str = "none",
    max_rounds: int = 1,
    allocation=None,
    most: int = 0,
) -> PromptSampler:
    """The prompt sampler that the config's section `sampler` describes.

    data: the training set. prompts: P, problems that a step draws. group: G, rollouts
    of a problem. seed: of the run. groups: of `GROUP_FILTERS`; with a filter a step
    takes up to `max_rounds` draws, and else one. allocation: the config's section of
    that name, None for `group` rollouts of each; most: G_max of it. Raises InputError
    where the data set does not have what the sampler needs.

    Fixed subsets (LIM, LINEAR, RAND, std) are training sets of their own, which
    launch/lim.py writes: any sampler draws from them.
    """
    row = choose(SAMPLERS, section.name, "sampler.name")
    # The first order folds 0 into the key of step 0, whose own draw folds in 1.
    draws = Draws(data, prompts, group, key=stream_key(seed, "sampler"))
    keep = GROUP_FILTERS[groups]
    if keep:
        draws = dataclasses.replace(draws, max_rounds=max_rounds)
        _check_rounds(draws)
    # A sampler without fields of its own has no section.
    sampler = row.make(section[section.name] if row.own else None, draws)
    if not section.unbiased:
        sampler = sampler._replace(importance=None)
    if allocation is not None:
        budget = Budget(draws.problems, prompts=prompts, group=group, most=most)
        sampler = allocated(sampler, allocation, budget)
    if not keep:
        return sampler
    return in_rounds(
        sampler,
        keep=keep,
        problems=draws.problems,
        prompts=prompts,
        max_rounds=max_rounds,
    )


def _check_rounds(draws: Draws) -> None:
    """InputError where the rounds of a step could not all draw different problems."""
    if draws.max_rounds * draws.prompts > draws.problems:
        raise InputError(
            f"filter.max_rounds={draws.max_rounds} may draw {draws.max_rounds} x "
            f"prompts_per_step={draws.prompts} problems in a step, but "
            f"{draws.data.source} has {draws.problems}; lower one of them"
        )


def stand_ins(section, count: int) -> Problems:
    """N = `count` problems, of nothing but what the sampler of this section reads.

    For a report of a run whose data set is not on this machine. What they hold changes
    the values of a sampler's state, and no shape. Raises InputError where the sampler's
    file of scores cannot be read.
    """
    row = choose(SAMPLERS, section.name, "sampler.name")
    own = section[section.name] if row.own else None
    # Ids that the sampler's own file has come first; a name stands there once.
    names = dict.fromkeys([*row.ids(own), *map(str, range(count))])
    ids = tuple(itertools.islice(names, count))
    return Problems(
        source="stand-ins",
        ids=ids,
        prompts=ids,
        messages=(None,) * count,
        answers=ids,
        columns={name: (x,) * count for name, x in row.columns(own).items()},
    )


def _uniform(_, draws: Draws) -> PromptSampler:
    return uniform(problems=draws.problems, prompts=draws.prompts, key=draws.key)


def _lim(own, draws: Draws) -> PromptSampler:
    weights = {
        "threshold": partial(
            threshold_weight, threshold=own.threshold, floor=own.floor
        ),
        "softmax": partial(
            softmax_weight, temperature=own.temperature, floor=own.floor
        ),
    }[own.weights]
    if not own.scores:
        return online_lim(
            problems=draws.problems,
            prompts=draws.prompts,
            key=draws.key,
            warmup_epochs=own.warmup_epochs,
            weights=weights,
        )
    score_N, _ = score_file.scores_of(resolve(own.scores), draws.data.ids)
    # A problem without a score is never kept: its weight is the floor.
    weight_N = weights(jnp.float32(score_N), jnp.ones(score_N.shape, bool))
    return weighted(weight_N=weight_N, prompts=draws.prompts)._replace(
        importance=lambda state, key: importance.of_draw_by_weight(
            state.weight_N, key, draws.prompts
        )
    )


def _cdas(own, draws: Draws) -> PromptSampler:
    if draws.problems < 2:
        raise InputError(
            f"sampler.name=cdas with {draws.problems} problem has nothing to align; "
            "give more problems or another sampler"
        )
    return cdas(
        problems=draws.problems,
        prompts=draws.prompts,
        key=draws.key,
        initial_count=_CDAS_COUNTS[own.weights],
    )


def _prioritized(own, draws: Draws) -> PromptSampler:
    return prioritized(problems=draws.problems, prompts=draws.prompts, **own)


def _mopps(own, draws: Draws) -> PromptSampler:
    return mopps(problems=draws.problems, prompts=draws.prompts, **own)


def _bots(own, draws: Draws) -> PromptSampler:
    return bots(problems=draws.problems, prompts=draws.prompts, **own)


def _dps(own, draws: Draws) -> PromptSampler:
    return dps(problems=draws.problems, prompts=draws.prompts, **own)


def _informative(own, draws: Draws) -> PromptSampler:
    return informative(
        problems=draws.problems, prompts=draws.prompts, group=draws.group, **own
    )


def _greso(own, draws: Draws) -> PromptSampler:
    return greso(problems=draws.problems, prompts=draws.prompts, key=draws.key, **own)


def _curriculum(own, draws: Draws) -> PromptSampler:
    level_N = _numbers(draws.data, own.column, "sampler.curriculum.column")
    # Below 0 a level is unknown, and `level_weight` leaves it out.
    level_N = np.where(np.isnan(level_N), -1, level_N)
    eligible = int(np.sum(level_N >= own.minimum))
    if eligible < draws.max_rounds * draws.prompts:
        rounds = f"filter.max_rounds={draws.max_rounds} x " * (draws.max_rounds > 1)
        raise InputError(
            f"sampler.curriculum.minimum={own.minimum}: {eligible} problems of "
            f"{draws.data.source} have that level, fewer than "
            f"{rounds}prompts_per_step={draws.prompts}; lower one of them"
        )
    return by_level(
        problems=draws.problems,
        prompts=draws.prompts,
        key=draws.key,
        level_N=level_N,
        start=own.start,
        minimum=own.minimum,
    )


def _adarft(own, draws: Draws) -> PromptSampler:
    data = draws.data
    difficulty_N = _numbers(data, own.column, "sampler.adarft.column")
    # Not as (x < 0) | (x > 100): nan, a missing value, must be outside, too.
    outside_N = ~((difficulty_N >= 0) & (difficulty_N <= 100))
    if outside_N.any():
        first = int(np.argmax(outside_N))
        raise InputError(
            f"sampler.adarft.column={own.column!r}: {data.ids[first]!r} of "
            f"{data.source} has {data.columns[own.column][first]!r}; every "
            "problem needs a difficulty from 0 to 100"
        )
    return adarft(
        difficulty_N=difficulty_N,
        prompts=draws.prompts,
        target=own.target,
        beta=own.beta,
        alpha=own.alpha,
        eta=own.eta,
    )


def _numbers(problems: Problems, column: str, field: str) -> np.ndarray:
    """A column of the data set as fp32; nan where a problem has no value."""
    columns = problems.columns
    if column not in columns:
        raise InputError(
            f"{field}={column!r}: {problems.source} has no such column, but "
            f"{', '.join(columns) or 'none at all'}; give one of numbers"
        )
    try:
        return np.array(
            [np.nan if x is None else float(x) for x in columns[column]], np.float32
        )
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{field}={column!r}: {error}; give a column of numbers"
        ) from error


def _scored(own) -> list[str]:
    """The ids of a score file's problems, those with a score first; none without it."""
    if not own.scores:
        return []
    scores = score_file.read_scores(resolve(own.scores))
    return sorted(scores, key=lambda problem: not np.isfinite(scores[problem]))


@dataclasses.dataclass(frozen=True)
class SamplerRow:
    """One value of `sampler.name`: how it is made, and the fields of its own."""

    make: Callable[..., PromptSampler]  # (the section sampler.NAME or None, Draws)
    # The fields of the section sampler.NAME, and what each may be: rows of limits.py.
    own: Mapping[str, limits.Row] = dataclasses.field(default_factory=dict)
    # Of an old name for another sampler with a filter: the filter.groups that it means.
    groups: str = ""
    # It asks how the rollouts of a group differ, so that it needs two at least.
    needs_group: bool = False
    # It has `importance`, as long as a floor of its own weights is above 0.
    known_chance: bool = False
    # It may draw where nothing is graded, reward=none.
    draws_without_rewards: bool = False
    # (the section) → what it reads of a data set, for `stand_ins`: columns, with a
    # value that each of them may have; ids, of which one must be there.
    columns: Callable[..., Mapping[str, float]] = lambda own: {}
    ids: Callable[..., Sequence[str]] = lambda own: ()


SAMPLERS = {
    "uniform": SamplerRow(_uniform, known_chance=True, draws_without_rewards=True),
    "lim": SamplerRow(
        _lim,
        {
            "warmup_epochs": limits.Whole(1, limits.COUNT),
            "scores": limits.Text(),
            "weights": limits.Choice(("threshold", "softmax")),
            "threshold": limits.Real(-limits.LARGE, 1),  # no score is larger than 1
            "temperature": limits.Real(limits.SMALL, limits.LARGE),
            "floor": limits.Real(0, 1),
        },
        known_chance=True,
        ids=_scored,
    ),
    "cdas": SamplerRow(
        _cdas,
        {
            "weights": limits.Choice(("paper", "code")),
        },
    ),
    "prioritized": SamplerRow(
        _prioritized,
        {
            "floor": limits.Real(0, 1),
        },
        known_chance=True,
    ),
    "curriculum": SamplerRow(
        _curriculum,
        {
            "column": limits.Text(),
            "start": limits.Whole(0, limits.COUNT),
            "minimum": limits.Real(-limits.LARGE, limits.LARGE),
        },
        columns=lambda own: {own.column: own.minimum},
    ),
    "adarft": SamplerRow(
        _adarft,
        {
            "column": limits.Text(),
            "target": limits.Real(0, 100),
            "beta": limits.Real(0, 1),
            "alpha": limits.Real(0, limits.LARGE),
            "eta": limits.Real(0, limits.LARGE),
        },
        columns=lambda own: {own.column: 0.0},
    ),
    # Its name until version 0.3; the next version knows `uniform` with a filter alone.
    "dynamic": SamplerRow(_uniform, groups="mixed"),
    "greso": SamplerRow(
        _greso,
        {
            "floor": limits.Real(0, 1),
            "target_right": limits.Real(0, 1),
            "target_wrong": limits.Real(0, 1),
            "step": limits.Real(0, 1),
        },
    ),
    "informative": SamplerRow(
        _informative,
        {
            "decay": limits.Real(0, 1),
            "floor": limits.Real(0, 1),
        },
        needs_group=True,
        known_chance=True,
    ),
    "bots": SamplerRow(
        _bots,
        {
            "pool": limits.Whole(0, limits.ROWS),
            "target": limits.Real(0, 1),
            "decay": limits.Real(0, 1),
            "prior": limits.Real(1e-3, limits.LARGE),
            "rho": limits.Real(0, 1),
        },
    ),
    "dps": SamplerRow(
        _dps,
        {
            "decay": limits.Real(0, 1),
            "prior": limits.Real(1e-3, limits.LARGE),
        },
        needs_group=True,
    ),
    "mopps": SamplerRow(
        _mopps,
        {
            "pool": limits.Whole(1, limits.ROWS),
            "target": limits.Real(0, 1),
            "decay": limits.Real(0, 1),
            "prior": limits.Real(1e-3, limits.LARGE),
        },
    ),
}


def own_limits() -> dict[str, limits.Row]:
    """What each field of a sampler's own may be: its name → a row of limits.py."""
    return {
        f"sampler.{name}.{field}": limit
        for name, row in SAMPLERS.items()
        for field, limit in row.own.items()
    }
