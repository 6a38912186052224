"""LIMR whole (arXiv:2502.11886): probe, score, select, train anew, evaluate, compare.

    python launch/limr.py --config configs/tiny.py --probe_epochs 21 --seeds 5

1. probe     --probe_epochs E epochs of RL on all problems, drawn uniformly
2. score     each problem's LIM score, of its accuracy by epoch; and LINEAR's
3. select    LIM: a score of at least --threshold (0.6). RAND: as many at random. LINEAR
             (this project's reading): a correlation with the epoch of at least --linear
             (0.7). FULL: all
4. train     each set from the base model, config.num_steps each; and ONLINE: all,
             drawn by sampler.name=lim in the one run, without a probe
5. evaluate  launch/evaluate.py on each: config.benchmarks, or else data.eval greedily

--arms A,B,…      of FULL, LIM, RAND, LINEAR and ONLINE (all of them); differences are
                  to the first
--seeds N         all of it so often, with the seeds from config.seed on (default 1)
--out DIR         default runs/<config's name>-limr
--run_seconds S   a run that takes longer is killed and has failed; 0: no limit

Killed at any time, the same command goes on. DIR holds limr.md, limr.json, limr.csv and
curves.png, as launch/ablate.py writes them; DIR/seed-N holds the runs, scores.jsonl and
the sets. The last line on stdout is one JSON object; the exit code is 1 where a run
failed.
"""

import math
import pathlib
import shlex

from limr_jax.config import load as config_lib
from limr_jax.errors import InputError, choose
from limr_jax.platform import launch_words

_FLAGS = {
    "probe_epochs": 21,
    "threshold": 0.6,
    "linear": 0.7,
    "arms": "FULL,LIM,RAND,LINEAR,ONLINE",
    "seeds": 1,
    "out": "",
    "run_seconds": 0.0,
}
_STEPS = 2**31 - 1  # of a run, at most
# Arm → the fields that it sets; where there is no data.train, it is of all problems.
ARMS = {
    "FULL": {"sampler.name": "uniform"},
    "LIM": {"sampler.name": "uniform", "data.train": "LIM-problems.jsonl"},
    "RAND": {"sampler.name": "uniform", "data.train": "RAND-problems.jsonl"},
    "LINEAR": {"sampler.name": "uniform", "data.train": "LINEAR-problems.jsonl"},
    "ONLINE": {"sampler.name": "lim", "sampler.lim.scores": ""},
}


def main(argv: list[str]) -> int:
    """Parse, check, then stage by stage for each seed, and report."""
    config, options = config_lib.load(argv, __doc__, flags=_FLAGS, kind="base")
    arms = _check(config, options)
    out = pathlib.Path(options.out or options.workdir + "-limr")
    # Imported late: a misspelt field is answered at once.
    import jax

    # The accelerator is for the runs.
    jax.config.update("jax_platforms", "cpu")
    from limr_jax import console, setup
    from limr_jax.data.tokenizer import load_tokenizer
    from limr_jax.platform import resolve
    from limr_jax.storage.workdir import claim, release
    from limr_jax.studies import jobs, tables

    jobs.check_options(config.seed, options)
    # All of them first: the probe is long, and a mistake in an arm would show after it.
    for arm in arms:
        job = train_job(options, arm, seed=config.seed, folder=out, fields=ARMS[arm])
        jobs.check_arm(arm, job)
    tokenizer = load_tokenizer(resolve(config.tokenizer))
    problems = setup.load_sets(config, tokenizer)[0].problems
    if _probed(arms):
        _check_probe(config, options, len(problems))
    console.say(_plan(config, options, arms=arms, problems=problems, out=out))
    if options.dry_run:
        return 0
    # Another threshold gives other sets: these are part of whose folder it is.
    names = ("probe_epochs", "threshold", "linear")
    chosen = {name: getattr(options, name) for name in names}
    claim(out, {"config": config.to_dict()} | chosen, flag="--out")
    try:
        grid, notes = {}, []
        for seed in range(config.seed, config.seed + options.seeds):
            seed_notes = _pipeline(
                config,
                options,
                arms=arms,
                problems=problems,
                out=out,
                seed=seed,
                grid=grid,
            )
            if seed_notes is None:
                console.say(f"stopped; the same command goes on: {out}")
                return 0
            notes += seed_notes
        summary = tables.write(
            out / "limr",
            grid,
            title=f"{options.config}: {', '.join(arms)}, {config.num_steps} steps each",
            command=shlex.join(["python", *launch_words("launch/limr.py"), *argv]),
            notes=["\n".join(f"* {note}" for note in notes)],
        )
        return tables.finish(out / "limr", grid, summary)
    finally:
        release(out)


def _pipeline(config, options, arms, problems, out, seed: int, grid: dict):
    """All stages of one seed: returns its notes, None where SIGTERM stopped it.

    Its runs are put into `grid`, (arm, seed) → job.
    """
    from limr_jax.studies import jobs, tables
    from limr_jax.studies import probe as probe_lib

    folder = out / f"seed-{seed}"
    cache, seconds = out / "compiled", options.run_seconds
    notes = []
    if _probed(arms):
        steps = probe_lib.steps(
            len(problems), config.prompts_per_step, options.probe_epochs
        )
        probe = train_job(
            options,
            "probe",
            seed=seed,
            folder=folder,
            fields=probe_lib.PROBE | {"num_steps": steps},
        )
        if not jobs.run_all([probe], cache, seconds=seconds):
            return None
        if not probe.done():
            log = probe.beside(".log")
            raise InputError(f"the probe failed, {jobs.failure(probe)}; see {log}")
        # Anew at each start: the same curves and the same seed give the same sets.
        notes.append(
            select(
                problems,
                probe=probe.workdir,
                options=options,
                seed=seed,
                folder=folder,
            )
        )
    runs = [
        train_job(options, arm, seed=seed, folder=folder, fields=ARMS[arm])
        for arm in arms
    ]
    grid |= {(arm, seed): job for arm, job in zip(arms, runs)}
    if not jobs.run_all(runs, cache, seconds=seconds, after=tables.progress_line):
        return None
    evaluations = [evaluate_job(job) for job in runs if job.done()]
    if not jobs.run_all(evaluations, cache, seconds=seconds):
        return None
    return notes + [_evaluated(job) for job in evaluations]


def _check(config, options) -> tuple[str, ...]:
    """The arms' names; InputError for what is wrong whatever the data."""
    arms = tuple(options.arms.split(","))
    for arm in arms:
        choose(ARMS, arm, "--arms")
    if len(set(arms)) < len(arms):
        raise InputError(f"--arms={options.arms} names one twice; name each once")
    if _probed(arms) and options.probe_epochs < 2:
        raise InputError(
            f"--probe_epochs={options.probe_epochs} must be at least 2; the paper's "
            "probe has 21"
        )
    if _probed(arms) and config.reward == "none":
        raise InputError(
            f"reward=none, and --arms={options.arms} are chosen by a probe's rewards; "
            "give --config.reward=… or --arms=FULL"
        )
    for name in ("threshold", "linear"):
        if not math.isfinite(value := getattr(options, name)):
            raise InputError(f"--{name}={value} must be a finite number")
    return arms


def _check_probe(config, options, problems: int) -> None:
    """InputError where the probe would have more steps than a run can."""
    from limr_jax.studies import probe

    steps = probe.steps(problems, config.prompts_per_step, options.probe_epochs)
    if steps > _STEPS:
        raise InputError(
            f"--probe_epochs={options.probe_epochs} of {problems:,} problems are "
            f"{steps} steps, more than {_STEPS}; give fewer"
        )


def _probed(arms) -> bool:
    """Whether an arm trains on a set that is chosen by the probe's curves."""
    return any("data.train" in ARMS[arm] for arm in arms)


def _plan(config, options, arms, problems, out) -> str:
    """What will run, as a line; the probe only where an arm needs one."""
    from limr_jax.studies import probe

    probed = ""
    if _probed(arms):
        epochs = options.probe_epochs
        steps = probe.steps(len(problems), config.prompts_per_step, epochs)
        probed = f"a probe of {epochs} epochs, {steps:,} steps, and "
    return (
        f"{len(problems):,} problems of {problems.source}; for each of {options.seeds} "
        f"seeds {probed}{options.arms} of {config.num_steps:,} steps with an "
        f"evaluation each, into {out}"
    )


def train_job(options, name: str, seed: int, folder: pathlib.Path, fields: dict):
    """launch/tpu.py from the base model, with the command's overrides and `fields`."""
    from limr_jax.studies import jobs

    own = dict(options.overrides) | fields | {"seed": seed}
    if fields.get("data.train"):
        own["data.train"] = str(folder / fields["data.train"])
    return jobs.train_job(
        f"{name}, seed {seed}",
        options.config,
        fields=own.items(),
        workdir=folder / name,
    )


def evaluate_job(trained):
    """launch/evaluate.py on the last checkpoint of a finished run."""
    from limr_jax.studies import jobs

    return jobs.Job(
        name=f"{trained.name}, evaluated",
        command=("launch/evaluate.py", "--workdir", str(trained.workdir)),
        # Where launch/evaluate.py puts it by itself.
        workdir=trained.workdir / "evaluations" / f"step-{trained.steps}",
    )


def select(problems, probe, options, seed: int, folder: pathlib.Path) -> str:
    """Score the probe's curves; write scores and sets; returns a line with their sizes.

    Where a problem had no valid rollout in an epoch, its last value is carried on.
    """
    from limr_jax.storage import files
    from limr_jax.studies import probe as probe_lib
    from limr_jax.studies import reward_curves

    recorded = probe_lib.curves(probe, options.probe_epochs)
    scores = {
        name: reward_curves.score(recorded, missing="carry", name=name).score_N
        for name in ("lim_score", "linear_score")
    }
    lim_N, linear_N = scores.values()
    keep_N = lim_N >= options.threshold
    # keep_random takes no 0. An empty LIM set is refused by its own run.
    count = max(1, int(keep_N.sum()))
    kept = {
        "LIM": keep_N,
        "RAND": reward_curves.keep_random(lim_N, count, seed=seed),
        "LINEAR": linear_N >= options.linear,
    }
    files.write_rows(
        folder / "scores.jsonl",
        (
            {"id": problem}
            | {name: _finite(score_N[i]) for name, score_N in scores.items()}
            for i, problem in enumerate(recorded.ids)
        ),
    )
    for arm, keep_N in kept.items():
        ids = {problem for problem, keep in zip(recorded.ids, keep_N) if keep}
        # Rows as files have them, whatever the set was read from.
        rows = (problems.row(i) for i, x in enumerate(problems.ids) if x in ids)
        files.write_rows(folder / ARMS[arm]["data.train"], rows)
    sizes = {"FULL": len(problems)} | {arm: int(x.sum()) for arm, x in kept.items()}
    return f"seed {seed}: problems: " + ", ".join(
        f"{arm} {size:,}" for arm, size in sizes.items()
    )


def _finite(score) -> float | None:
    return float(score) if math.isfinite(score) else None


def _evaluated(job) -> str:
    """The benchmarks' figures of one run, each with its interval over problems."""
    from limr_jax.storage.workdir import read_result

    result = read_result(job.workdir)
    if result is None:
        return f"{job.name}: failed"
    accuracies = []
    for label, report in result["benchmarks"].items():
        value, low, high = (report["accuracy"][x] for x in ("value", "low", "high"))
        accuracies.append(f"{label} {value:.1%} [{low:.1%}, {high:.1%}]")
    return f"{job.name}: {', '.join(accuracies)} (over problems)"


if __name__ == "__main__":
    config_lib.run_main(main)
