"""Selectors replayed on recorded curves, without a model.

Given are the pass rates of N problems in E epochs, as some run recorded them. A prompt
sampler of limr_jax/samplers draws P problems a step, ceil(N / P) steps an epoch, and
sees G rollouts of each, right with the recorded pass rate of that epoch. Whether
rollout g of a problem is right in an epoch depends on (seed, problem, epoch, g) alone,
so that all samplers meet the same luck; a second visit within the epoch has the next G.
Samplers are the ones that train, through their own init, sample and update, with the
numbers of configs/base.py.

    signal groups   1 − p^G − (1 − p)^G, summed over the problems drawn: how many of
                    them are expected to have a right and a wrong rollout
    oracle          the P problems of each step with most of it, the rates being known
    regret          the oracle's signal groups less the selector's
    overlap         of two choices: the share of their union that is in both. A
                    sampler's choice are the K problems that it drew most often, of
                    equal ones those that it drew last

Fixed subsets of K problems are chosen from the whole curves, which no run knows before
it ends (LIM, LINEAR, std: the K largest scores; hardest: those that are wrong most
often in the first epoch; RAND), and are drawn from uniformly.

What a replay cannot say:

* The policy does not learn from what a selector chooses. The curves are those of the
  run that was recorded; a selector that trains elsewhere would have made others. Who
  stays with a few problems pays nothing for it, though these would soon be learned.
* So it does not say who learns more, only who finds the groups that say something.
* A rate recorded from few rollouts is itself noisy. One of 0 of 8 is replayed as never
  right: on average signal groups are more than is said here (by a fifth in the run of
  studies/README.md). The oracle takes the noise for knowledge: a part of its lead is
  no one's to have.
* Missing cells take the last known rate, and before a problem's first visit its first
  one. Problems that were never seen are left out.
* One draw a step and G rollouts a problem: no filter of groups, no allocation. Samplers
  that ask for a column of the data set (curriculum, adarft) are left out.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from limr_jax import prng
from limr_jax.data.problems import Problems
from limr_jax.errors import InputError, shown
from limr_jax.samplers.from_config import SAMPLERS, make_sampler
from limr_jax.studies import reward_curves

SETS = {"LIM": "lim_score", "LINEAR": "linear_score", "std": "std"}  # of whole curves


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
    """The numbers of a replay."""

    prompts: int  # P, problems that a step draws
    group: int  # G, rollouts of a problem
    seed: int
    size: int | None = None  # K, problems of a choice; None: as many as LIM keeps


def replay(
    curves: reward_curves.Curves, section: ConfigDict, config: ReplayConfig
) -> dict:
    """What each selector would have drawn, as a dict that JSON can hold.

    curves: of pass rates. section: `sampler` of a run's config, whose `name` is of no
    account. Raises InputError where the curves are no pass rates, or too few problems.
    """
    whole = fill(curves)
    _check(whole, config)
    sets, size = subsets(whole, config, threshold=section.lim.threshold)
    problems, epochs = whole.value_NE.shape
    steps = -(-problems // config.prompts)
    # The program's rates are fp32; what is expected of a draw is summed in fp64.
    chance_NE = mixed_chance(whole.value_NE, config.group)
    best_E = np.sort(chance_NE, axis=0)[-config.prompts :].sum(axis=0) * steps

    def entry(signal_E, visited: int, chosen_K) -> dict:
        return {
            "signal_groups": float(signal_E.sum()),
            "regret": float((best_E - signal_E).sum()),
            "visited_share": visited / problems,
            "signal_groups_by_epoch": signal_E.tolist(),
            "chosen": [whole.ids[i] for i in chosen_K],
        }

    names, selectors = samplers(section), {}
    # Most of the time is the compiler's, one program after another.
    with ThreadPoolExecutor(max_workers=2) as pool:
        draw = partial(_draws, section=section, whole=whole, config=config)
        drawn = list(pool.map(draw, names))
    for name, ids_EXP in zip(names, drawn, strict=True):
        epoch_E11 = np.arange(epochs)[:, None, None]
        signal_E = chance_NE[ids_EXP, epoch_E11].sum(axis=(1, 2))
        chosen_K = most_drawn(ids_EXP.reshape(-1), size)
        selectors[name] = entry(signal_E, len(np.unique(ids_EXP)), chosen_K)
    for name, chosen_K in sets.items():
        signal_E = chance_NE[chosen_K].mean(axis=0) * config.prompts * steps
        selectors[name] = entry(signal_E, len(chosen_K), chosen_K)
    return {
        "problems": problems,
        "never_seen": len(curves.ids) - problems,
        "missing_cells": int((~whole.seen_NE).sum()),
        "epochs": epochs,
        "steps": steps * epochs,
        "problems_per_step": config.prompts,
        "group": config.group,
        "seed": config.seed,
        "size": size,
        "oracle_signal_groups": float(best_E.sum()),
        "selectors": selectors,
        "overlap": overlap({name: row["chosen"] for name, row in selectors.items()}),
    }


def samplers(section: ConfigDict) -> list[str]:
    """The names of `sampler.name` that need nothing but rewards, in the table's order.

    Old names for others are left out.
    """
    return [
        name
        for name, row in SAMPLERS.items()
        if not row.groups and not row.columns(section.get(name))
    ]


def fill(curves: reward_curves.Curves) -> reward_curves.Curves:
    """The curves without gaps, of the problems that were ever seen.

    A gap takes the last known value, and before the first one that. `seen_NE` still
    says which cells were recorded.
    """
    ever_N = curves.seen_NE.any(axis=1)
    value_NE, seen_NE = curves.value_NE[ever_N], curves.seen_NE[ever_N]
    epoch_1E = np.arange(seen_NE.shape[1])[None]
    last_NE = np.maximum.accumulate(np.where(seen_NE, epoch_1E, -1), axis=1)
    from_NE = np.where(last_NE < 0, seen_NE.argmax(axis=1)[:, None], last_NE)
    ids = tuple(x for x, ever in zip(curves.ids, ever_N, strict=True) if ever)
    filled_NE = np.take_along_axis(value_NE, from_NE, axis=1)
    return reward_curves.Curves(ids, filled_NE, seen_NE)


def _check(whole: reward_curves.Curves, config: ReplayConfig) -> None:
    if len(whole.ids) < 2:
        raise InputError(
            f"{len(whole.ids)} problems with a curve leave nothing to choose; give 2 "
            "or more"
        )
    outside_NE = (whole.value_NE < 0) | (whole.value_NE > 1)
    if outside_NE.any():
        i, epoch = np.argwhere(outside_NE)[0]
        raise InputError(
            f"{shown(whole.ids[i])!r} has {whole.value_NE[i, epoch]:g} in epoch "
            f"{epoch}, which is no pass rate; give curves of 0 to 1"
        )
    for flag, value in (
        ("problems_per_step", config.prompts),
        ("size", config.prompts if config.size is None else config.size),
    ):
        if not 1 <= value <= len(whole.ids):
            raise InputError(
                f"--{flag} {value} must be from 1 to the {len(whole.ids)} problems "
                "that have a curve"
            )


def mixed_chance(pass_rate, group: int):
    """The chance that G rollouts of this pass rate are neither all right nor all wrong.

    pass_rate: 0 to 1, of any shape.
    """
    return 1 - pass_rate**group - (1 - pass_rate) ** group


def subsets(
    whole: reward_curves.Curves, config: ReplayConfig, *, threshold: float
) -> tuple[dict[str, np.ndarray], int]:
    """(name → the indices of its problems, in the curves' order), and K.

    whole: curves without gaps. K is config.size, or else how many problems have a LIM
    score of at least `threshold`, but P at least.
    """

    def scored(curves, name: str):
        return reward_curves.score(curves, missing=None, name=name).score_N

    score_of = {name: scored(whole, score) for name, score in SETS.items()}
    size = config.size or max(int((score_of["LIM"] >= threshold).sum()), config.prompts)
    # The first epoch is the nearest to the base model that a run has recorded.
    first = reward_curves.Curves(
        whole.ids, whole.value_NE[:, :1], np.ones((len(whole.ids), 1), bool)
    )
    score_of["hardest"] = scored(first, "hardest")
    keep_of = {
        name: reward_curves.keep_top(score_N, size)
        for name, score_N in score_of.items()
    }
    keep_of["RAND"] = reward_curves.keep_random(score_of["LIM"], size, seed=config.seed)
    return {f"{name} set": np.flatnonzero(x) for name, x in keep_of.items()}, size


def _draws(
    name: str,
    *,
    section: ConfigDict,
    whole: reward_curves.Curves,
    config: ReplayConfig,
) -> np.ndarray:
    """What a sampler draws: ids_EXP, of X steps an epoch."""
    sampler = make_sampler(
        ConfigDict(section.to_dict() | {"name": name}),
        _without_texts(whole.ids),
        prompts=config.prompts,
        group=config.group,
        seed=config.seed,
    )
    problems, epochs = whole.value_NE.shape
    steps = -(-problems // config.prompts)

    @jax.jit
    def run(value_EN):
        def step(carry, done):
            (state, visits_N), epoch = carry, done // steps
            visits_N = jnp.where(done % steps == 0, 0, visits_N)
            key = prng.stream_key(config.seed, "sampler", done)
            state, ids_P = sampler.sample(state, key)
            correct_PG = outcomes(
                value_EN[epoch, ids_P],
                ids_P,
                key=prng.stream_key(config.seed, "rollout", epoch),
                first_P=visits_N[ids_P] * config.group,
                group=config.group,
            )
            valid_PG = jnp.ones_like(correct_PG, bool)
            state = sampler.update(state, ids_P, correct_PG, valid_PG)
            return (state, visits_N.at[ids_P].add(1)), ids_P

        start = sampler.init(), jnp.zeros(problems, jnp.int32)
        return jax.lax.scan(step, start, jnp.arange(epochs * steps))[1]

    ids_TP = run(jnp.asarray(whole.value_NE.T, jnp.float32))
    return np.asarray(ids_TP).reshape(epochs, steps, -1)


def most_drawn(ids_X: np.ndarray, size: int) -> np.ndarray:
    """The `size` problems that come most often in a row of draws, most often first.

    Of equal ones the last drawn. Fewer, where there are not as many.
    """
    # From the end: of each problem the first index is then its last draw.
    drawn, since, count = np.unique(ids_X[::-1], return_index=True, return_counts=True)
    return drawn[np.lexsort((since, -count))[:size]]


def outcomes(pass_rate_P, ids_P, *, key, first_P, group: int) -> jax.Array:
    """correct_PG, fp32: 1 where a rollout of a problem is right.

    key: of an epoch. first_P: g of the first rollout, int; G follow one another. A
    rollout depends on the key, on its problem and on its g alone. At a pass rate of 0
    none is right, at 1 all are.
    """
    prompts = ids_P.shape[0]
    sample_PG = first_P[:, None] + jnp.arange(group)[None]
    keys = prng.rollout_keys(key, jnp.repeat(ids_P, group), sample_PG.reshape(-1))
    luck_B = jax.vmap(jax.random.uniform)(keys)  # 0 or more, and less than 1
    right_PG = luck_B.reshape(prompts, group) < pass_rate_P[:, None]
    return right_PG.astype(jnp.float32)


def _without_texts(ids: Sequence[str]) -> Problems:
    """Problems of which no more is known than that they are so many."""
    return Problems(
        source="the recorded curves",
        ids=tuple(ids),
        prompts=tuple(ids),
        messages=(None,) * len(ids),
        answers=tuple(ids),
        columns={},
    )


def overlap(chosen: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """The Jaccard index of each two choices: how much of their union is in both."""
    sets = {name: set(ids) for name, ids in chosen.items()}
    return {
        a: {b: len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for b in sets}
        for a in sets
    }


def of_scores(
    scores_of: Mapping[str, Mapping[str, float]],
    *,
    threshold: float,
    size: int | None,
    seed: int,
) -> dict:
    """What LIM keeps by finished scores, as a dict that JSON can hold.

    scores_of: file → id → score. size: K, how many of each; None: those of at least
    `threshold`. RAND is as many of the first file as LIM keeps of it. Raises InputError
    where a file has too few.
    """
    chosen = {}
    for file, scores in scores_of.items():
        ids, score_N = np.array(list(scores)), np.array(list(scores.values()))
        keep_N = score_N >= threshold
        if not (size or keep_N.any()):
            raise InputError(f"{file}: no score of at least {threshold}; give --size K")
        try:
            if size is not None:
                keep_N = reward_curves.keep_top(score_N, size)
            count = int(keep_N.sum())
            if not chosen:
                random_N = reward_curves.keep_random(score_N, count, seed=seed)
                random_ids = ids[random_N].tolist()
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
        chosen[file] = ids[keep_N].tolist()
    chosen[f"RAND of {next(iter(chosen))}"] = random_ids
    return {"chosen": chosen, "overlap": overlap(chosen)}


def scores_table(result: Mapping) -> str:
    """What `of_scores` gives, as text."""
    sizes = [f"{len(ids):>9,} of {name}" for name, ids in result["chosen"].items()]
    names = list(result["chosen"])
    return "\n".join([*sizes, "", *overlap_table(result["overlap"], names)])


def table(result: Mapping) -> str:
    """A replay as text: the selectors, least regret first, and how they overlap."""
    rows = dict(sorted(result["selectors"].items(), key=lambda x: x[1]["regret"]))
    oracle, steps = result["oracle_signal_groups"], result["steps"]
    lines = [
        f"{result['problems']:,} problems x {result['epochs']} epochs: {steps:,} steps "
        f"of {result['problems_per_step']} problems x {result['group']} rollouts; "
        f"{result['missing_cells']:,} missing cells were filled; choices of "
        f"{result['size']:,}",
        "",
    ]
    lines += ["selector      signal groups  a step   regret  visited"]
    lines += [f"{'oracle':<14}{oracle:>13.1f}{oracle / steps:>8.2f}{0:>9.1f}"]
    lines += [
        f"{name:<14}{row['signal_groups']:>13.1f}{row['signal_groups'] / steps:>8.2f}"
        f"{row['regret']:>9.1f}{row['visited_share']:>9.1%}"
        for name, row in rows.items()
    ]
    return "\n".join([*lines, "", *overlap_table(result["overlap"], list(rows))])


def overlap_table(
    overlaps: Mapping[str, Mapping[str, float]], names: Sequence[str]
) -> list[str]:
    """The lines of the overlaps of these names; a column is known by its number."""
    width = max(map(len, names)) + 5
    lines = [f"{'overlap':<{width}}" + "".join(f"{k:>5}" for k in range(len(names)))]
    for k, a in enumerate(names):
        cells = "".join(f"{overlaps[a][b]:>5.2f}" for b in names[: k + 1])
        lines.append(f"{f'{k:>2}  {a}':<{width}}{cells}")
    return lines
