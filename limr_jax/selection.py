"""Config → the prompt sampler of a run, and what is refused of it."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np

from limr_jax import (
    curricula,
    curves,
    data,
    dynamic_sampler,
    greso_sampler,
    online_lim,
    pass_rate_samplers,
    prompt_sampler,
    reward,
)
from limr_jax.algorithms import lim
from limr_jax.errors import InputError, choose, within
from limr_jax.policy import resolve
from limr_jax.prompt_sampler import PromptSampler
from limr_jax.randomness import stream_key

_INFINITY = float("inf")
# Field of the section `sampler` → the least and the largest value that make sense.
_LIMITS = {
    "lim.warmup_epochs": (1, _INFINITY),
    "lim.floor": (0, 1),
    "prioritized.floor": (0, 1),
    "curriculum.start": (0, _INFINITY),
    "adarft.target": (0, 100),
    "adarft.beta": (0, 1),
    "adarft.alpha": (0, _INFINITY),
    "adarft.eta": (0, _INFINITY),
    "dynamic.max_rounds": (1, _INFINITY),
    # A round adds a batch at most, and the next step takes what is over first.
    "dynamic.max_age": (0, 1),
    "greso.floor": (0, 1),
    "greso.target_right": (0, 1),
    "greso.target_wrong": (0, 1),
    "greso.step": (0, 1),
    "mopps.pool": (1, _INFINITY),
    "mopps.target": (0, 1),
    "mopps.decay": (0, 1),
}
_POSITIVE = ("lim.temperature", "mopps.prior")
_LIM_WEIGHTS = ("threshold", "softmax")
_CDAS_COUNTS = {"paper": 0, "code": 1}  # what the starting difficulty weighs


def check(config) -> None:
    """Refuse what is wrong with the section `sampler`, whatever the data."""
    given = config.sampler
    choose(_SAMPLERS, given.name, "sampler.name")
    choose(dict.fromkeys(_LIM_WEIGHTS), given.lim.weights, "sampler.lim.weights")
    choose(_CDAS_COUNTS, given.cdas.weights, "sampler.cdas.weights")
    within(given, _LIMITS, above_0=_POSITIVE, section="sampler.")
    _check_mix(config)


def _check_mix(config) -> None:
    """Refuse what does not go together, or leaves nothing to learn from."""
    name, scores = config.sampler.name, config.sampler.lim.scores
    if scores and name != "lim":
        raise InputError(
            f"sampler.lim.scores={scores} with sampler.name={name}, which draws by no "
            "scores; take sampler.name=lim, or leave the scores empty"
        )
    if name == "dynamic" and config.algorithm == "jepo":
        raise InputError(
            "sampler.name=dynamic with algorithm=jepo drops the groups without a right "
            "response, which JEPO is for; take another sampler"
        )
    if name == "dynamic" and (shaped := reward.shaped_first(config.reward)):
        raise InputError(
            f"sampler.name=dynamic with reward={config.reward}: groups are kept by raw "
            f"correctness, which comes from the first, and {shaped} shapes a reward; "
            "put the verifier (math, limr, judge or your own) first"
        )
    if name == "dynamic" and config.group_size == 1:
        raise InputError(
            "sampler.name=dynamic with group_size=1 keeps nothing, as one rollout does "
            "not vary; raise it"
        )


def sampler(given, problems: data.Problems, *, prompts: int, seed: int):
    """The prompt sampler that the section `sampler` describes; InputError as it is due.

    Fixed subsets (LIM, LINEAR, RAND, std) are training sets of their own, which
    launch/lim.py writes: any sampler draws from them.
    """
    # The first order folds 0 into the key of step 0, whose own draw folds in 1.
    in_order = {
        "problems": len(problems),
        "prompts": prompts,
        "key": stream_key(seed, "sampler"),
    }
    return choose(_SAMPLERS, given.name, "sampler.name")(given, problems, in_order)


def _uniform(given, problems, in_order) -> PromptSampler:
    return prompt_sampler.uniform(**in_order)


def _lim(given, problems, in_order) -> PromptSampler:
    given = given.lim
    weights_of = {
        "threshold": partial(
            lim.threshold_weight, threshold=given.threshold, floor=given.floor
        ),
        "softmax": partial(
            lim.softmax_weight, temperature=given.temperature, floor=given.floor
        ),
    }
    weights = weights_of[given.weights]
    if not given.scores:
        return online_lim.online_lim(
            **in_order, warmup_epochs=given.warmup_epochs, weights=weights
        )
    score_N, _ = curves.scores_of(resolve(given.scores), problems.ids)
    # A problem without a score is never kept: its weight is the floor.
    weight_N = weights(jnp.float32(score_N), jnp.ones(score_N.shape, bool))
    return prompt_sampler.weighted(weight_N=weight_N, prompts=in_order["prompts"])


def _cdas(given, problems, in_order) -> PromptSampler:
    if len(problems) < 2:
        raise InputError(
            f"sampler.name=cdas with {len(problems)} problem has nothing to align; "
            "give more problems or another sampler"
        )
    initial_count = _CDAS_COUNTS[given.cdas.weights]
    return pass_rate_samplers.cdas(**in_order, initial_count=initial_count)


def _prioritized(given, problems, in_order) -> PromptSampler:
    return pass_rate_samplers.prioritized(
        problems=len(problems), prompts=in_order["prompts"], **given.prioritized
    )


def _mopps(given, problems, in_order) -> PromptSampler:
    return pass_rate_samplers.mopps(
        problems=len(problems), prompts=in_order["prompts"], **given.mopps
    )


def _dynamic(given, problems, in_order) -> PromptSampler:
    most, prompts = given.dynamic.max_rounds, in_order["prompts"]
    if most * prompts > len(problems):
        raise InputError(
            f"sampler.dynamic.max_rounds={most} may draw {most} x prompts_per_step="
            f"{prompts} problems in a step, but {problems.source} has "
            f"{len(problems)}; lower one of them"
        )
    return dynamic_sampler.dynamic(**in_order, max_rounds=most)


def _greso(given, problems, in_order) -> PromptSampler:
    return greso_sampler.greso(**in_order, **given.greso)


def _curriculum(given, problems, in_order) -> PromptSampler:
    given, prompts = given.curriculum, in_order["prompts"]
    level_N = _numbers(problems, given.column, "sampler.curriculum.column")
    level_N = np.where(np.isnan(level_N), -1, level_N)
    enough = int(np.sum(level_N >= given.minimum))
    if enough < prompts:
        raise InputError(
            f"sampler.curriculum.minimum={given.minimum}: {enough} problems of "
            f"{problems.source} have that level, fewer than "
            f"prompts_per_step={prompts}; lower one of them"
        )
    return curricula.by_level(
        **in_order, level_N=level_N, start=given.start, minimum=given.minimum
    )


def _adarft(given, problems, in_order) -> PromptSampler:
    given = given.adarft
    difficulty_N = _numbers(problems, given.column, "sampler.adarft.column")
    wrong_N = ~((difficulty_N >= 0) & (difficulty_N <= 100))
    if wrong_N.any():
        first = int(np.argmax(wrong_N))
        raise InputError(
            f"sampler.adarft.column={given.column!r}: {problems.ids[first]!r} of "
            f"{problems.source} has {problems.columns[given.column][first]!r}; every "
            "problem needs a difficulty from 0 to 100"
        )
    return curricula.adarft(
        difficulty_N=difficulty_N,
        prompts=in_order["prompts"],
        target=given.target,
        beta=given.beta,
        alpha=given.alpha,
        eta=given.eta,
    )


def _numbers(problems: data.Problems, column: str, field: str) -> np.ndarray:
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


_SAMPLERS: dict[str, Callable[..., PromptSampler]] = {
    "uniform": _uniform,
    "lim": _lim,
    "cdas": _cdas,
    "prioritized": _prioritized,
    "curriculum": _curriculum,
    "adarft": _adarft,
    "dynamic": _dynamic,
    "greso": _greso,
    "mopps": _mopps,
}
