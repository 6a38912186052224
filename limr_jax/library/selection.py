"""Prompt samplers and advantages by name, without a config or a data set."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from limr_jax.config import config_file, limits
from limr_jax.data.problems import Problems
from limr_jax.errors import InputError, choose
from limr_jax.learner.advantages import ALGORITHMS, by_group
from limr_jax.platform import launch_root
from limr_jax.samplers.from_config import SAMPLERS, make_sampler
from limr_jax.samplers.interface import PromptSampler


def prompt_sampler(
    name: str,
    *,
    problems: int | Sequence[str],
    prompts: int,
    group: int = 8,
    seed: int = 0,
    columns: Mapping[str, Sequence[Any]] | None = None,
    **fields: bool | int | float | str,
) -> PromptSampler:
    """The prompt sampler that a run has with `sampler.name`, as four functions.

    name: one of limr_jax/samplers/README.md, such as "uniform", "lim" or "mopps".
    problems: N, how many there are, or their ids (with `scores` of "lim", which has
    scores by id). prompts: P, problems that a step draws. group: G, rollouts of each.
    columns: of the data set, a value a problem, where the sampler reads one
    ("curriculum", "adarft"). fields: of its section in configs/base.py, such as
    `threshold` of "lim"; the others are as there.

    `init() → state`; `sample(state, key) → state, ids_P`, the places (int32) of P
    different problems; `update(state, ids_P, correct_PG, valid_PG) → state`, of raw
    correctness (fp32, 0 to 1) and whether a rollout was graded (bool), both [P, G];
    `report(state, ids_P) → metrics`. All may be jitted.

    Raises:
      InputError: an unknown name or field, a value that the field may not have, fewer
        problems than a step draws, or a column that is missing.

    >>> import jax, jax.numpy as jnp
    >>> sampler = prompt_sampler("prioritized", problems=6, prompts=2, floor=0.1)
    >>> state = sampler.init()
    >>> state, ids_P = sampler.sample(state, jax.random.key(0))
    >>> right_PG = jnp.array([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    >>> state = sampler.update(state, ids_P, right_PG, jnp.ones((2, 4), bool))
    >>> round(float(sampler.report(state, ids_P)["prioritized/drawn_weight"]), 3)
    0.425
    """
    row = choose(SAMPLERS, name, "name")
    ids = _ids(problems)
    limits.check_value(limits.LIMITS["prompts_per_step"], prompts, "prompts")
    limits.check_value(limits.LIMITS["group_size"], group, "group")
    limits.check_value(limits.LIMITS["seed"], seed, "seed")
    if prompts > len(ids):
        raise InputError(
            f"prompts={prompts} is more than the {len(ids)} problems, and a step draws "
            "none twice; lower it"
        )
    if row.needs_group and group < 2:
        raise InputError(f"group={group}: {name} compares rollouts; give 2 or more")
    columns = dict(columns or {})
    for column, values in columns.items():
        if len(values) != len(ids):
            raise InputError(
                f"columns[{column!r}] has {len(values)} values for {len(ids)} "
                "problems; give one a problem"
            )
    data = Problems(
        source="columns",
        ids=ids,
        prompts=ids,
        messages=(None,) * len(ids),
        answers=ids,
        columns={column: tuple(values) for column, values in columns.items()},
    )
    base = str(launch_root() / "configs/base.py")
    section = config_file.load(base, "base").sampler
    section.name = name
    for field, value in fields.items():
        limit = choose(row.own, field, f"{name}: field") if row.own else None
        if limit is None:
            raise InputError(f"{name} has no fields of its own; leave {field} out")
        limits.check_value(limit, value, f"{name}: {field}")
        section[name][field] = limit.kind(value)
    return make_sampler(section, data, prompts=prompts, group=group, seed=seed)


def _ids(problems: int | Sequence[str]) -> tuple[str, ...]:
    if isinstance(problems, int):
        limits.check_value(limits.Whole(1, limits.COUNT), problems, "problems")
        return tuple(map(str, range(problems)))
    if isinstance(problems, str) or not hasattr(problems, "__len__"):
        kind = type(problems).__name__
        raise InputError(f"problems is {kind}; give how many there are, or their ids")
    ids = tuple(map(str, problems))
    if len(set(ids)) < len(ids):
        raise InputError(f"problems has {len(ids)} ids, some of them twice; name each")
    return ids


def advantage(
    name: str,
    reward_PG: ArrayLike | Sequence[Sequence[float]],
    valid_PG: ArrayLike | Sequence[Sequence[bool]] | None = None,
    **fields: float,
) -> jax.Array:
    """The advantages that a run has with `algorithm`, fp32 [P, G]; pure, may be jitted.

    name: "grpo", "dr_grpo", "rloo", "rloo_normalised", "maxrl" or "reinforce_pp".
    reward_PG: the rewards of G rollouts of each of P problems. valid_PG: bool, whether
    a rollout was graded; one that was not is in no mean and has an advantage of 0.
    None: all were. fields: arguments of the formula in limr_jax/algorithms, such as
    `epsilon` and `ddof` of "grpo".

    Raises:
      InputError: an unknown name or field; the name of an algorithm whose advantages
        need more than rewards ("ppo", "jepo"); arrays of other shapes.

    >>> advantage("grpo", [[1, 0, 0, 0], [1, 1, 1, 1]], epsilon=0.0).round(2).tolist()
    [[1.5, -0.5, -0.5, -0.5], [0.0, 0.0, 0.0, 0.0]]
    """
    row = choose(ALGORITHMS, name, "name")
    bound = getattr(row.advantage, "keywords", {})
    if getattr(row.advantage, "func", None) is not by_group:
        raise InputError(
            f"name={name!r} makes advantages of more than rewards; its formulas are in "
            "limr_jax.algorithms"
        )
    estimator = bound["estimator"]
    known = list(inspect.signature(estimator).parameters)[2:]
    for field in fields:
        if field not in known:
            raise InputError(
                f"{name} has no argument {field!r}; it has {', '.join(known) or 'none'}"
            )
    rewards = jnp.asarray(reward_PG, jnp.float32)
    valid = jnp.ones(rewards.shape, bool) if valid_PG is None else jnp.asarray(valid_PG)
    if rewards.ndim != 2 or valid.shape != rewards.shape or valid.dtype != bool:
        raise InputError(
            f"reward_PG has shape {rewards.shape} and valid_PG {valid.shape} of "
            f"{valid.dtype}; give both as [problems, rollouts of each], the second bool"
        )
    result: jax.Array = estimator(rewards, valid, **fields)
    return result
