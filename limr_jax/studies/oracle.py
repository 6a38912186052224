"""What a selector with perfect knowledge would draw by: pass rates from fresh samples.

No selector has it, since it costs many times the rollouts of training. It is the
ceiling of those that draw by the chance that a group has both outcomes.
"""

import dataclasses
import math

import jax
import numpy as np

from limr_jax import setup
from limr_jax.data.problems import TokenizedProblems
from limr_jax.data.prompts import put_prompts
from limr_jax.evaluation import trained_policy
from limr_jax.evaluation.evaluator import make_evaluator
from limr_jax.storage import files

POOL = 1024  # problems that are sampled at most, drawn at random of more


def mixed_chance(right_N: np.ndarray, samples: int, *, group: int) -> np.ndarray:
    """The chance that a group has a right and a wrong response, without bias.

    right_N: right ones of `samples` fresh responses, of which a group is drawn without
    replacement: 1 − C(right, G)/C(samples, G) − C(wrong, G)/C(samples, G).
    """
    whole = math.comb(samples, group)
    alike_N = [
        math.comb(int(right), group) + math.comb(samples - int(right), group)
        for right in right_N
    ]
    return 1 - np.array(alike_N) / whole


def log_chances(chance_N: np.ndarray) -> list[float | None]:
    """The logarithms, None for a chance of 0; where no problem has one, all are 0."""
    if not np.any(chance_N > 0):
        return [0.0] * len(chance_N)
    return [math.log(chance) if chance > 0 else None for chance in chance_N.tolist()]


def write_scores(
    config, path, *, workdir=None, step: int = 0, samples: int, seed: int
) -> None:
    """Write {id, lim_score} of a policy's problems: the logarithm of `mixed_chance`.

    With softmax weights at temperature 1 the problems are then drawn by that chance;
    null, for a chance of 0, has the sampler's floor. Where no problem has a chance all
    are alike. config: of the run whose problems they are. workdir, step: the
    checkpoint; None: the base model. samples: responses a problem. seed: of the pool,
    where there are more than POOL problems, and of the responses.
    """
    run = setup.set_up(config)
    chosen = np.arange(len(run.train_set))
    if len(chosen) > POOL:
        chosen = np.sort(np.random.default_rng(seed).permutation(chosen)[:POOL])
    pool = _take(run.train_set, chosen)
    with jax.set_mesh(run.mesh):
        evaluator = make_evaluator(
            run.mesh,
            put_prompts(pool, run.mesh),
            count=len(pool),
            k=samples,
            seed=seed,
            generation=run.generation,
            compute=run.compute,
            grade=run.grade,
        )
        params = (
            trained_policy.load_params(workdir, step, run.compute.model, run.mesh)
            if workdir
            else run.load_params()
        )
        correct_Nk = evaluator(params, run.sampling).correct_Nk
    run.close()
    chance_N = mixed_chance(
        np.sum(correct_Nk > 0, axis=1), samples, group=config.group_size
    )
    rows = zip(pool.problems.ids, log_chances(chance_N))
    files.write_rows(path, ({"id": name, "lim_score": score} for name, score in rows))


def _take(tokenized: TokenizedProblems, places: np.ndarray) -> TokenizedProblems:
    return dataclasses.replace(
        tokenized,
        problems=tokenized.problems.take(places.tolist()),
        prompt_NL=tokenized.prompt_NL[places],
        prompt_length_N=tokenized.prompt_length_N[places],
        answer_NA=tokenized.answer_NA[places],
        answer_length_N=tokenized.answer_length_N[places],
    )
