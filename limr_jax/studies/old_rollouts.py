"""A run's rollouts, scored under its later policies, beside fresh samples of these.

Rollouts are a function of (seed, step, problem, sample) and the policy, so the policy
before each step writes them again, with the tokens and log-probabilities that a dump
does not hold; the dump says whether they are the same. What takes long is kept in a
folder, so that a study that was stopped goes on.
"""

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
from jax.sharding import NamedSharding

from limr_jax import setup
from limr_jax.console import progress
from limr_jax.data.prompts import PromptBatch, prompt_batch, put_prompts
from limr_jax.errors import InputError
from limr_jax.evaluation import trained_policy
from limr_jax.evaluation.evaluator import make_evaluator
from limr_jax.jit import jit
from limr_jax.multihost.arrays import on_host, put
from limr_jax.rollout.types import Rollout
from limr_jax.setup import Run
from limr_jax.sharding import BATCH, REPLICATED
from limr_jax.storage import checkpoint, files, rollout_dump
from limr_jax.storage.workdir import claim, read_result, release
from limr_jax.studies.pass_rates import FRESH, Case

_TIMED = 16  # pairs of programs in `seconds`


@dataclasses.dataclass(frozen=True)
class OldRollouts:
    """A finished run with a checkpoint and a whole dump of each step."""

    workdir: str
    run: Run
    drawn: Callable  # ids_P → PromptBatch on the devices
    steps: int  # the last step that is asked for
    prompts: int  # P, problems of a step
    out: pathlib.Path
    seed: int

    def params(self, step: int):
        """The policy after so many steps."""
        if step == 0:
            return self.run.load_params()
        return trained_policy.load_params(
            self.workdir, step, self.run.compute.model, self.run.mesh
        )


def open_run(workdir: str, steps: Sequence[int], out: pathlib.Path) -> OldRollouts:
    """The run, set up so that it scores its rollouts; InputError where it cannot.

    What is made of it is kept in the folder of its name below `out`.
    """
    result = read_result(workdir)
    if result is None:
        raise InputError(f"{workdir} is no finished run; give one, or wait for it")
    out = out / pathlib.Path(workdir).name
    claim(out, {"params_digest": result["params_digest"]}, flag="--out")
    release(out)
    config = trained_policy.read_config(workdir)
    _check(config, workdir, max(steps))
    with config.unlocked():
        config.mismatch.recompute = True  # for the program that scores rollouts
    run = setup.set_up(config)
    rows = NamedSharding(run.mesh, BATCH)
    with jax.set_mesh(run.mesh):
        prompts = put_prompts(run.train_set, run.mesh)
        pick = jit(run.mesh, prompt_batch, out_shardings=rows)

    def drawn(ids_P) -> PromptBatch:
        batch = pick(prompts, put(np.asarray(ids_P, np.int32), rows))
        # The order of writing, which no token depends on.
        nobody_P = put(np.zeros(len(ids_P), np.float32), rows)
        return dataclasses.replace(batch, expected_P=nobody_P)

    return OldRollouts(
        workdir=workdir,
        run=run,
        drawn=drawn,
        steps=max(steps),
        prompts=config.prompts_per_step,
        out=out,
        seed=config.seed,
    )


def _check(config, workdir: str, last: int) -> None:
    """InputError for a run whose rollouts cannot be written again or weighed."""
    rollout = config.rollout
    plain = {
        "filter.groups": (config.filter.groups, "none"),
        "rollout.calls": (rollout.calls, 1),
        "rollout.top_p": (rollout.top_p, 1.0),
        "rollout.top_k": (rollout.top_k, 0),
        "rollout.min_p": (rollout.min_p, 0.0),
        "reward": (config.reward, "token"),
        "allocation.name": (config.allocation.name, "fixed"),
        "model.lora.rank": (config.model.lora.rank, 0),
    }
    for field, (value, plain_value) in plain.items():
        if value != plain_value:
            raise InputError(
                f"{workdir}: {field}={value}, and only runs with {plain_value} can be "
                "studied; give another run"
            )
    with checkpoint.Checkpointer(workdir, read_only=True) as saver:
        missing = sorted({*range(1, last + 1)} - {*saver.steps()})
    if missing:
        raise InputError(
            f"{workdir}: no checkpoint of step {missing[0]}, whose policy wrote "
            "rollouts; train with checkpoint.every=1 and checkpoint.keep=num_steps"
        )


def _kept(path: pathlib.Path, make: Callable[[], dict]) -> dict[str, np.ndarray]:
    """The arrays of a file; where it is not there, they are made and it is written."""
    if not path.exists():
        arrays = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def write_again(old: OldRollouts) -> list[dict[str, np.ndarray]]:
    """Of each step the problems, the Rollout's arrays, the grades, and how many differ.

    `differs` counts the rollouts whose text or grade is not the dump's.
    """
    run, steps = old.run, range(1, old.steps + 1)
    dumped: dict[int, list[dict]] = {}
    for row in rollout_dump.read_dump(old.workdir, steps=steps):
        dumped.setdefault(row["step"], []).append(row)
    group = run.generation.group
    place = {name: index for index, name in enumerate(run.train_set.problems.ids)}

    def make(step: int) -> dict:
        rows = dumped.get(step, [])
        if len(rows) != old.prompts * group:
            raise InputError(
                f"{old.workdir}: the dump lacks rollouts of step {step}; train with "
                "dump.rows_per_step=0, and a dump.max_bytes that holds all"
            )
        ids_P = np.array([place[row["id"]] for row in rows[::group]], np.int32)
        drawn = old.drawn(ids_P)
        # A rollout's key has the steps that were done before it.
        rollout = run.programs.generate(
            old.params(step - 1), np.int32(step - 1), drawn, run.sampling, run.seed
        )
        graded = run.grade(rollout, drawn)
        arrays = {name: x for name, x in vars(rollout).items() if x is not None}
        arrays, correct_PG = on_host((arrays, graded.correct_PG))
        length_B = arrays["mask_BT"].sum(axis=1)
        differs = 0
        for b, row in enumerate(rows):
            text = run.tokenizer.decode(arrays["response_BT"][b, : length_B[b]])
            same_grade = row["correct"] == correct_PG.reshape(-1)[b]
            differs += not (same_grade and text == row["response"])
        return arrays | {"ids_P": ids_P, "correct_PG": correct_PG, "differs": differs}

    arrays_of_steps = []
    with progress("write again", old.steps) as advance:
        for step in steps:
            arrays_of_steps.append(
                _kept(old.out / f"rollouts/{step}.npz", partial(make, step))
            )
            advance(1)
    return arrays_of_steps


def _rollout(arrays: dict[str, np.ndarray]) -> Rollout:
    """The Rollout of the arrays that `write_again` keeps; None for what they lack."""
    names = [field.name for field in dataclasses.fields(Rollout)]
    return Rollout(**{name: arrays[name] for name in names if name in arrays})


def log_ratios(old: OldRollouts, rollouts: list[dict], step: int) -> np.ndarray:
    """log π after `step` − log π_i, of the rollouts of X = `step` steps, [X, P, G]."""

    def make() -> dict:
        params, parts = old.params(step), []
        with progress(f"score under step {step}", step) as advance:
            for arrays in rollouts[:step]:
                rollout = _rollout(arrays)
                today_BT = on_host(
                    old.run.programs.old(params, rollout, old.run.sampling)
                )
                ratio_BT = today_BT - arrays["logprob_BT"]
                ratio_B = np.where(arrays["mask_BT"], ratio_BT, 0).sum(axis=1)
                parts.append(ratio_B.reshape(-1, old.run.generation.group))
                advance(1)
        return {"log_ratio_XPG": np.stack(parts)}

    return _kept(old.out / f"log_ratios/{step}.npz", make)["log_ratio_XPG"]


def fresh(old: OldRollouts, step: int, samples: int) -> np.ndarray:
    """Whether each of so many fresh samples of all problems is right, [N, K]."""
    run = old.run

    def make() -> dict:
        evaluator = make_evaluator(
            run.mesh,
            put_prompts(run.train_set, run.mesh),
            count=len(run.train_set),
            k=samples,
            seed=old.seed,
            generation=run.generation,
            compute=run.compute,
            grade=run.grade,
        )
        label, params = f"{samples} fresh samples at step {step}", old.params(step)
        with progress(label, evaluator.count, unit="problem") as advance:
            evaluation = evaluator(params, run.sampling, advance)
        return {"correct_NK": evaluation.correct_Nk > 0}

    return _kept(old.out / f"fresh/{samples}-{step}.npz", make)["correct_NK"]


def case(old: OldRollouts, rollouts: list[dict], step: int, *, samples: int) -> Case:
    """What is known after `step`: old rollouts, and `samples` fresh ones as the truth.

    Further fresh samples are for the estimates that may use some.
    """
    group = old.run.generation.group
    if samples < group:
        raise InputError(
            f"{samples} fresh samples hold no group of {group}, whose chance to be "
            f"mixed is asked for; give {group} or more"
        )
    spare = max(*FRESH, group)
    fresh_NK = fresh(old, step, spare + samples)
    return Case(
        ids_XP=np.stack([arrays["ids_P"] for arrays in rollouts[:step]]),
        correct_XPG=np.stack([arrays["correct_PG"] for arrays in rollouts[:step]]) > 0,
        log_ratio_XPG=log_ratios(old, rollouts, step),
        fresh_NF=fresh_NK[:, :spare],
        truth_NK=fresh_NK[:, spare:],
    )


def seconds(old: OldRollouts, rollouts: list[dict], step: int) -> dict[str, float]:
    """What writing a step's rollouts takes, and scoring as many old ones: medians.

    Seconds, and processor seconds of this process, which other work on the machine
    changes less.
    """
    run, params = old.run, old.params(step)
    names = ("write", "score", "write_processor", "score_processor")
    spent: dict[str, list[float]] = {name: [] for name in names}
    now = put(np.int32(step), NamedSharding(run.mesh, REPLICATED))
    # One turn more, the first, in which programs may compile.
    for turn, arrays in enumerate(rollouts[-_TIMED - 1 :]):
        drawn = old.drawn(arrays["ids_P"])
        rollout = _rollout(arrays)
        calls = {
            "write": partial(
                run.programs.generate, params, now, drawn, run.sampling, run.seed
            ),
            "score": partial(run.programs.old, params, rollout, run.sampling),
        }
        # In turns: what else the machine does slows both.
        for name, call in calls.items():
            start, processor = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            if turn:
                spent[name].append(time.perf_counter() - start)
                spent[f"{name}_processor"].append(time.process_time() - processor)
    return {name: statistics.median(values) for name, values in spent.items()}
