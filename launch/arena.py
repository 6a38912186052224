"""When does choosing problems pay? Regimes × arms × seeds at equal generated tokens.

    python launch/arena.py --config configs/arena.py
    python launch/arena.py --config configs/arena.py --regimes hard,wrong --minutes 60

--regimes A,B     arguments of the config file, each a training set (default: all six of
                  configs/arena.py)
--arms A,B        of those below (default: all); differences are to uniform
--seeds N         runs of each, with the seeds from config.seed on (default 5)
--tokens N        generated tokens at which arms are compared (default 400,000)
--probe_epochs E  epochs of the run whose curves choose LIM's set and std's (default 10,
                  at most 1,000)
--fork_at N       arms but uniform go on from uniform's run after N steps, instead of
                  beginning for themselves; give it another --record and --out. A
                  sampler that visits all problems first (CDAS, LIM-online) does so then
--record FILE     JSON lines of what is finished (default notebooks/arena.jsonl): what
                  stands there is not run again, on whichever machine; not in --out
--out DIR         the runs' own folders, and arena.md (default runs/arena)
--minutes M       begin no run after so many; 0: no limit
--run_seconds S   a run that takes longer is killed and has failed; 0: no limit

    uniform      every problem once an epoch
    dynamic      uniform, and groups that are all right or all wrong are replaced
    LIM          LIM's set alone (offline, by the probe)   LIM-online   its weights
    LIM-16       the 16.3 % of the best LIM scores         RAND-16      as many
    RAND, std    as many problems as LIM's set             hardest      a tenth, by 8
                 responses of the base model; of equal ones the first
    CDAS, MoPPS, BOTS, informative (with dynamic's filter)
    knapsack, ada    uniform, and rollouts divided among the step's problems
    oracle       by the chance that a group has both outcomes, of 64 fresh samples a
                 problem every 16 steps, of at most 1,024 problems at random; its
                 samples are not counted
    uniform-16, dynamic-16    with 16 problems a step: they separate what a filter
                 gains from what smaller batches and more steps do

Arms that do not differ have the same noise and the same order. A run goes on until it
has generated --tokens. The same command goes on after a stop. The last line on stdout
is one JSON object; the exit code is 1 where a run failed.
"""

import collections
import dataclasses
import hashlib
import json
import math
import pathlib
import shlex
import time

from limr_jax.config import load as config_lib
from limr_jax.config.config_file import is_default, leaves
from limr_jax.errors import InputError, choose
from limr_jax.platform import launch_words

_SCORES = {
    "sampler.name": "lim",
    "sampler.lim.weights": "softmax",
    "sampler.lim.temperature": 1.0,
    "sampler.lim.floor": 0.001,
}
# Arm → the fields that it sets; data.train is the name of a fixed subset.
ARMS = {
    "uniform": {},
    "dynamic": {"filter.groups": "mixed"},
    "LIM": {"data.train": "LIM"},
    "RAND": {"data.train": "RAND"},
    "LIM-16": {"data.train": "LIM-16"},
    "RAND-16": {"data.train": "RAND-16"},
    "std": {"data.train": "std"},
    "hardest": {"data.train": "hardest"},
    "LIM-online": {"sampler.name": "lim"},
    "CDAS": {"sampler.name": "cdas"},
    "MoPPS": {"sampler.name": "mopps"},
    "BOTS": {"sampler.name": "bots"},
    "informative": {"sampler.name": "informative", "filter.groups": "mixed"},
    "knapsack": {"allocation.name": "knapsack"},
    "ada": {"allocation.name": "ada"},
    "oracle": _SCORES,
    "uniform-16": {"prompts_per_step": 16},
    "dynamic-16": {"prompts_per_step": 16, "filter.groups": "mixed"},
}
# Fields that change no figure: where things lie, and what is kept.
_ASIDE = ("data.cache_dir", "data.manual_dir", "dump.", "grader.", "checkpoint.")
# What every arm begins from, so that it is what its name says.
_PLAIN = {
    "sampler.name": "uniform",
    "filter.groups": "none",
    "allocation.name": "fixed",
}
_ORACLE_EVERY, _ORACLE_SAMPLES = 16, 64  # steps, responses a problem
_FIRST_STEPS = 32  # of an arm of which nothing is known yet
_FLAGS = {
    "regimes": "clean,hard,solved,skew,wrong,limr",
    "arms": ",".join(ARMS),
    "seeds": 5,
    "tokens": 400_000,
    "probe_epochs": 10,
    "fork_at": 0,
    "record": "notebooks/arena.jsonl",
    "out": "runs/arena",
    "minutes": 0.0,
    "run_seconds": 0.0,
}
# Of the probe and of RAND: no arm's seed, so that no arm has the probe's noise.
_PROBE_SEED = 1_000_000
_EPOCHS = 1_000  # at most, of the probe: what more of them need is no run
_RESPONSES = 8  # of the base model, a problem, which choose the hardest tenth


@dataclasses.dataclass(frozen=True)
class _Grid:
    """What is asked for, and where it goes."""

    config: object
    options: object
    record: object
    out: pathlib.Path
    deadline: float  # time.monotonic() after which no run begins

    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def job(self, regime: str, name: str, fields: dict, workdir: pathlib.Path):
        """launch/tpu.py on a regime, with the command's overrides and `fields`."""
        from limr_jax.studies import jobs

        own = dict(self.options.overrides) | fields
        return jobs.train_job(
            f"{regime}, {name}",
            f"{self.options.config}:{regime}",
            fields=[(field, str(value)) for field, value in own.items()],
            workdir=workdir,
        )

    def run(self, job) -> str:
        """Run one job: "" if it is finished, "stopped", or why it failed."""
        from limr_jax.studies import jobs

        seconds = self.options.run_seconds
        if not jobs.run_all([job], self.out / "compiled", seconds=seconds):
            return "stopped"
        return "" if job.done() else jobs.failure(job) or "it did not finish"


def main(argv: list[str]) -> int:
    """Parse, check every regime and arm, run what is not recorded, report."""
    config, options = config_lib.load(argv, __doc__, flags=_FLAGS, kind="base")
    regimes, arms = options.regimes.split(","), options.arms.split(",")
    _check(config, options, regimes=regimes, arms=arms)
    out = pathlib.Path(options.out)
    # Imported late: a misspelt field is answered at once.
    import jax

    # The accelerator is for the runs.
    jax.config.update("jax_platforms", "cpu")
    from limr_jax import console
    from limr_jax.storage import files
    from limr_jax.storage.workdir import claim, release
    from limr_jax.studies import arena, jobs

    jobs.check_options(config.seed, options)
    files.check_writable(out / "run.json", "--out")
    if files.real(options.record).is_relative_to(files.real(out)):
        raise InputError(
            f"--record={options.record} lies in --out={out}, where the runs' own files "
            "and arena.md are written; give a file elsewhere"
        )
    files.output(options.record, flag="--record")
    files.check_writable(options.record, "--record")
    limit = 60 * options.minutes or math.inf
    grid = _Grid(
        config=config,
        options=options,
        record=arena.Record(options.record),
        out=out,
        deadline=time.monotonic() + limit,
    )
    _check_arms(grid, regimes=regimes, arms=arms)
    _check_record(grid, regimes)
    left = _left(grid, regimes=regimes, arms=arms)
    console.say(
        f"{len(regimes)} regimes x {len(arms)} arms x {options.seeds} seeds at "
        f"{options.tokens:,} tokens; {left} runs are left; into {options.record}"
    )
    if options.dry_run:
        return 0
    claim(out, {"config": config.to_dict()}, flag="--out")
    try:
        with grid.record.locked():
            failed = _run_all(grid, regimes=regimes, arms=arms)
    finally:
        release(out)
    command = shlex.join(["python", *launch_words("launch/arena.py"), *argv])
    # A record may hold regimes of other commands, at other tokens.
    same = {"tokens": options.tokens, "fork_at": options.fork_at}
    runs = [
        row
        for row in grid.record.runs()
        if row.items() >= same.items() and row["regime"] in regimes
    ]
    report = arena.summary(runs, list(ARMS))
    page = arena.markdown(report, tokens=options.tokens, command=command)
    files.write_text(out / "arena.md", page)
    console.say(page)
    left = _left(grid, regimes=regimes, arms=arms)
    console.say(json.dumps({"left": left, "failed": failed, "out": str(out)}))
    return 1 if failed else 0


def _check(config, options, *, regimes, arms) -> None:
    """InputError for what is wrong with the flags and the config, whatever the data."""
    for arm in arms:
        choose(ARMS, arm, "--arms")
    for flag, names in (("regimes", regimes), ("arms", arms)):
        if len(set(names)) < len(names):
            raise InputError(
                f"--{flag}={','.join(names)} names one twice; name each once"
            )
    if ":" in options.config:
        raise InputError(
            f"--config={options.config}: regimes are arguments of the file; give "
            f"--config={options.config.partition(':')[0]} and --regimes"
        )
    if options.tokens < 1:
        raise InputError(f"--tokens={options.tokens} must be at least 1")
    if not 2 <= options.probe_epochs <= _EPOCHS:
        raise InputError(
            f"--probe_epochs={options.probe_epochs} must be from 2 to {_EPOCHS}; LIMR "
            "has 21"
        )
    if options.fork_at < 0 or options.fork_at % max(1, config.evaluation.every):
        raise InputError(
            f"--fork_at={options.fork_at} must be 0, for none, or a multiple of "
            f"evaluation.every={config.evaluation.every}"
        )
    if options.fork_at and (arms[0] != "uniform" or "oracle" in arms):
        raise InputError(
            f"--arms={','.join(arms)} with --fork_at={options.fork_at}: uniform comes "
            "first, since the others fork from it, and the oracle cannot"
        )
    # A rollout has one token at least.
    least = options.fork_at * config.prompts_per_step * config.group_size
    if least >= options.tokens:
        raise InputError(_too_late(options, f"at least {least:,}"))
    own = {
        "data.train",
        "num_steps",
        *_PLAIN,
        *(x for arm in ARMS.values() for x in arm),
    }
    if fields := sorted(own & {field for field, _ in options.overrides}):
        raise InputError(
            f"--config.{fields[0]} is what regimes and arms differ in; leave it out"
        )
    for field, plain in _PLAIN.items():
        section, name = field.split(".")
        if (value := config[section][name]) != plain:
            raise InputError(
                f"{options.config} has {field}={value}, and arms begin from {plain}; "
                "give another config"
            )
    if _PROBE_SEED in range(config.seed, config.seed + options.seeds):
        raise InputError(
            f"--config.seed={config.seed} with --seeds={options.seeds} has an arm of "
            f"seed {_PROBE_SEED}, which is the probe's; give a smaller --config.seed"
        )
    if options.minutes < 0:
        raise InputError(f"--minutes={options.minutes} must be 0 or more")
    if not config.evaluation.every or _ORACLE_EVERY % config.evaluation.every:
        raise InputError(
            f"evaluation.every={config.evaluation.every} must divide {_ORACLE_EVERY}, "
            "the steps between two looks of the oracle; give 4"
        )
    if config.optimizer.decay_steps:
        raise InputError(
            f"optimizer.decay_steps={config.optimizer.decay_steps}: arms end after "
            "different numbers of steps, and the rate must not depend on it; give 0"
        )


def _check_arms(grid: _Grid, *, regimes, arms) -> None:
    """InputError where an arm cannot run, before any does."""
    from limr_jax.studies import jobs

    for regime in regimes:
        for arm in arms:
            fields = {k: v for k, v in ARMS[arm].items() if k != "data.train"}
            jobs.check_arm(arm, grid.job(regime, arm, fields, grid.out))
        _probe_job(grid, regime, 1)


def _check_record(grid: _Grid, regimes) -> None:
    """InputError where what is on record of a regime is of another command."""
    for row in grid.record.rows:
        if row["regime"] in regimes and row["common"] != _common(grid, row["regime"]):
            name = row.get("arm") or f"the set {row['set']}"
            raise InputError(
                f"{grid.options.record} holds {row['regime']}, {name}, of other "
                "settings; give the command that it had, or another --record"
            )


def _left(grid: _Grid, *, regimes, arms) -> int:
    seeds = _seeds(grid)
    return sum(
        grid.record.run(regime, arm, seed) is None
        for regime in regimes
        for arm in arms
        for seed in seeds
    )


def _seeds(grid: _Grid) -> range:
    return range(grid.config.seed, grid.config.seed + grid.options.seeds)


def _run_all(grid: _Grid, *, regimes, arms) -> int:
    """Run what is not recorded, seed by seed in each regime; returns the failures."""
    from limr_jax import console

    failed = 0
    for regime in regimes:
        # Seeds outside: a regime that is cut short still compares all arms.
        for seed in _seeds(grid):
            for arm in arms:
                if grid.late():
                    return failed
                error = _one(grid, regime, arm, seed=seed)
                if error == "stopped":
                    return failed
                if error:
                    console.say(f"{regime}, {arm}, seed {seed}: failed, {error}")
                    failed += 1
    return failed


def _one(grid: _Grid, regime: str, arm: str, *, seed: int) -> str:
    """Run an arm, unless it is recorded, and record it: "", or what came between."""
    from limr_jax import console
    from limr_jax.studies import arena, jobs

    fields, subset = dict(ARMS[arm]), ""
    if name := fields.get("data.train"):
        error = _make_subsets(grid, regime)
        if error:
            return error
        row = grid.record.subset(regime, name)
        if row["problems"] < grid.config.prompts_per_step:
            return (
                f"{name} keeps {row['problems']} of {row['of']} problems, and a step "
                f"draws {grid.config.prompts_per_step}"
            )
        fields["data.train"], subset = _write_subset(grid, regime, row)
    fields["seed"] = seed
    folder = grid.out / regime / arm / f"seed-{seed}"
    settings = _settings(grid, regime, arm=arm, seed=seed, subset=subset)
    if recorded := grid.record.run(regime, arm, seed):
        if recorded["settings"] != settings:
            raise InputError(
                f"{grid.options.record} holds {regime}, {arm}, seed {seed} of other "
                "settings; give the command that it had, or another --record"
            )
        return ""
    run = _run_oracle if arm == "oracle" else _run_arm
    workdirs, error = run(grid, regime, arm, fields=fields, folder=folder)
    if error:
        return error
    tokens = grid.options.tokens
    row = {"regime": regime, "arm": arm, "seed": seed, "settings": settings}
    row |= {"common": _common(grid, regime), "tokens": tokens}
    row["fork_at"] = grid.options.fork_at
    row |= arena.outcome(workdirs, tokens, group=grid.config.group_size)
    source = jobs.source()
    row["commit"] = (source["commit"] or "no git")[:12]
    row["commit"] += " dirty" if source["dirty"] else ""
    grid.record.add(row)
    accuracy = row["figures"]["accuracy"]
    console.say(
        f"{regime}, {arm}, seed {seed}: {accuracy:.1%} after {row['steps']} steps"
    )
    return ""


def _common(grid: _Grid, regime: str) -> str:
    """The digest of what all arms and seeds of a regime have in common."""
    options = grid.options
    job = grid.job(regime, "", {"seed": grid.config.seed}, grid.out)
    fields = {
        name: value
        for name, value in leaves(json.loads(json.dumps(job.config)))
        # A field that is new in base.py changes no run that is on record.
        if not is_default(name, value)
        and not name.startswith(_ASIDE)
        and name not in ("seed", "num_steps")
    }
    return _digest([fields, options.tokens, options.fork_at, options.probe_epochs])


def _settings(grid: _Grid, regime: str, *, arm: str, seed: int, subset: str) -> str:
    """The digest of what a run's figures depend on; subset: that of its problems."""
    parts = [_common(grid, regime), ARMS[arm], seed, subset]
    if arm == "oracle":
        from limr_jax.studies import oracle

        parts += [_ORACLE_EVERY, _ORACLE_SAMPLES, oracle.POOL]
    return _digest(parts)


def _digest(parts: list) -> str:
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _too_late(options, tokens: str) -> str:
    """Why a fork after so many tokens compares nothing: the arms would be one run."""
    return (
        f"--fork_at={options.fork_at} is after {tokens} tokens, and arms are compared "
        f"at --tokens={options.tokens:,}: give an earlier step, or more tokens"
    )


def _run_arm(grid: _Grid, regime: str, arm: str, *, fields: dict, folder):
    """One run, given more steps until it has its tokens: (workdirs, error)."""
    from limr_jax.storage.workdir import read_result, read_run
    from limr_jax.studies import arena

    every, tokens = grid.config.evaluation.every, grid.options.tokens
    workdirs, fork_at = [folder], grid.options.fork_at
    if fork_at:
        # A checkpoint of that step stays, and what comes after it.
        fields = fields | {"checkpoint.every": fork_at, "checkpoint.keep": 100}
        if arm != "uniform":
            trunk = folder.parents[1] / "uniform" / folder.name
            if read_result(trunk) is None:
                return [], f"{trunk}, which it forks from, is not here; give its --out"
            before = arena.written([trunk], steps=fork_at)
            if before >= tokens:
                return [], _too_late(grid.options, f"{before:,.0f}")
            workdirs = [trunk, folder]
    known = [
        row["steps"]
        for row in grid.record.runs()
        if (row["regime"], row["arm"]) == (regime, arm)
    ]
    steps = max(known, default=_FIRST_STEPS)
    # A run that was stopped may have been given more steps already.
    if stopped := read_run(folder, missing_ok=True):
        steps = max(steps, stopped["config"]["num_steps"])
    # A fork has one step at least, and the trunk comes as far as it.
    steps = max(steps, fork_at + every)
    while True:
        # At an evaluation, so that the curve does not depend on where it was cut.
        steps = every * math.ceil(steps / every)
        name = f"{arm}, seed {fields['seed']}"
        job = grid.job(regime, name, fields | {"num_steps": steps}, folder)
        if len(workdirs) > 1:
            job = job.forked(workdirs[0], fork_at)
        if error := grid.run(job):
            return [], error
        written = arena.written(workdirs)
        if written >= tokens:
            return workdirs, ""
        steps = max(steps + every, math.ceil(steps * tokens / written))


def _run_oracle(grid: _Grid, regime: str, arm: str, *, fields: dict, folder):
    """Parts that fork from one another, each drawn by fresh pass rates."""
    from limr_jax import console
    from limr_jax.studies import arena, oracle

    workdirs: list[pathlib.Path] = []
    plain = {"seed": fields["seed"], "sampler.name": "uniform"}
    while not workdirs or arena.written(workdirs) < grid.options.tokens:
        number = len(workdirs)
        workdir, scores = folder / f"part-{number}", folder / f"scores-{number}.jsonl"
        name = f"{arm}, seed {fields['seed']}, part {number}"
        if not scores.exists():
            console.say(f"{regime}, {name}: {_ORACLE_SAMPLES} samples a problem")
            folder.mkdir(parents=True, exist_ok=True)
            config, _ = config_lib.load(
                list(grid.job(regime, name, plain, workdir).command[1:]), kind="base"
            )
            oracle.write_scores(
                config,
                scores,
                workdir=workdirs[-1] if workdirs else None,
                step=_ORACLE_EVERY * number,
                samples=_ORACLE_SAMPLES,
                seed=1000 * (fields["seed"] + 1) + number,
            )
        steps = _ORACLE_EVERY * (number + 1)
        own = fields | {"num_steps": steps, "sampler.lim.scores": str(scores)}
        job = grid.job(regime, name, own, workdir)
        if workdirs:
            job = job.forked(workdirs[-1], _ORACLE_EVERY * number)
        if error := grid.run(job):
            return [], error
        workdirs.append(workdir)
    return workdirs, ""


def _make_subsets(grid: _Grid, regime: str) -> str:
    """Choose and record the regime's subsets, if they are not: "", or what came."""
    from limr_jax.studies import jobs, probe, reward_curves, subsets

    if all(grid.record.subset(regime, name) for name in subsets.NAMES):
        return ""
    problems = _problems(grid, regime)
    folder, config = grid.out / regime, grid.config
    steps = probe.steps(
        len(problems), config.prompts_per_step, grid.options.probe_epochs
    )
    job = _probe_job(grid, regime, steps)
    if error := grid.run(job):
        return f"the probe: {error}"
    base = jobs.Job(
        name=f"{regime}, the base model's responses",
        command=(
            "launch/evaluate.py",
            f"--config={grid.options.config}:{regime}",
            f"--benchmarks={problems.source}@{_RESPONSES}@1.0",
            *(f"--config.{field}={text}" for field, text in grid.options.overrides),
            "--config.benchmarks.top_p=1.0",
            f"--out={folder / 'base'}",
        ),
        workdir=folder / "base",
    )
    if error := grid.run(base):
        return f"the base model's responses: {error}"
    chosen = subsets.choose(
        problems.ids,
        probe.curves(folder / "probe", grid.options.probe_epochs),
        reward_curves.read_evaluation(folder / "base"),
        seed=_PROBE_SEED,
    )
    for name, places in chosen.items():
        if not grid.record.subset(regime, name):
            row = {"regime": regime, "set": name, "of": len(problems)}
            row["common"] = _common(grid, regime)
            grid.record.add(row | _kinds(problems, places) | {"places": places})
    return ""


def _probe_job(grid: _Grid, regime: str, steps: int):
    from limr_jax.studies import probe

    fields = {
        "seed": _PROBE_SEED,
        "num_steps": steps,
        "checkpoint.every": steps,
        "evaluation.every": 0,
    }
    folder = grid.out / regime / "probe"
    return grid.job(regime, "probe", probe.PROBE | fields, folder)


def _problems(grid: _Grid, regime: str):
    from limr_jax.data.problems import load_problems

    config = grid.job(regime, "", {}, grid.out).config
    data = config["data"]
    return load_problems(
        data["train"], data_dir=data["cache_dir"], manual_dir=data["manual_dir"] or None
    )


def _kinds(problems, places: list[int]) -> dict:
    """How many problems a subset has, in all and of each kind that the set names."""
    chosen = problems.take(places)
    kinds = chosen.columns.get("kind", ("usual",) * len(places))
    counts = dict(collections.Counter(kinds))
    if wrong := sum(map(bool, chosen.columns.get("wrong", ()))):
        counts["wrong"] = wrong
    return {"problems": len(places), "kinds": counts}


def _write_subset(grid: _Grid, regime: str, row: dict) -> tuple[str, str]:
    """(file of a subset's problems, digest of them); row: of the record."""
    from limr_jax.storage import files

    problems = _problems(grid, regime)
    if row["of"] != len(problems):
        raise InputError(
            f"{grid.options.record} has {regime}'s sets of {row['of']} problems, and "
            f"{problems.source} has {len(problems)}; give another --record"
        )
    chosen = problems.take(row["places"])
    path = grid.out / regime / "sets" / f"{row['set']}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_rows(path, (chosen.row(i) for i in range(len(chosen))))
    return str(path), chosen.digest


if __name__ == "__main__":
    config_lib.run_main(main)
