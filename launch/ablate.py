"""Compare settings: every arm with the same seeds, one run after another.

    python launch/ablate.py --config configs/tiny.py --vary kl=0,0.001,0.01 --seeds 5
    python launch/ablate.py --config configs/tiny.py --arm lim:sampler=lim \\
        --arm 'plain:sampler=uniform,filter.tau=-1'

--vary FIELD=A,B,…    an arm a value; given again: one for each combination. kl stands
                      for kl.coefficient, sampler for sampler.name
--arm NAME:FIELD=A,…  instead: an arm by name and its settings ('NAME' alone: none)
--seeds N             runs of each arm, with the seeds from config.seed on (default 5)
--out DIR             default runs/<config's name>-<the fields>
--tokens N            compare at N generated tokens, on a line between evaluations (set
                      evaluation.every), and count the groups with signal until then
--run_seconds S       a run that takes longer is killed and has failed; 0: no limit
--dry_run             say what would run, and stop

Each run is launch/tpu.py in a process and a workdir of its own; all share one compile
cache. All arms have a seed before any has the next. The same command goes on after a
stop, skips what is done and tries again what failed; seeds and arms may be added. In
DIR: ablation.md (means with t intervals over seeds, differences to the first arm paired
by seed with p adjusted for all arms by Holm's step-down, and the command and commit
behind every number), ablation.json, ablation.csv, curves.png. The last line on stdout
is one JSON object; the exit code is 1 where a run failed.
"""

import itertools
import pathlib
import re
import shlex

from limr_jax.config import load as config_lib
from limr_jax.config.diff import config_digest
from limr_jax.errors import InputError
from limr_jax.platform import launch_words

_FLAGS = {
    "vary": (),
    "arm": (),
    "seeds": 5,
    "out": "",
    "tokens": 0,
    "run_seconds": 0.0,
}
_TAKEN = (".", "..", "compiled")  # the grid's folder has these
_SHORT = {"kl": "kl.coefficient", "sampler": "sampler.name"}


def main(argv: list[str]) -> int:
    """Parse, check every arm, run the grid, report."""
    config, options = config_lib.load(argv, __doc__, flags=_FLAGS, kind="base")
    arms = parse_arms(options.vary, options.arm)
    _check_twice(options, arms)
    out = pathlib.Path(options.out or _default_out(options, arms))
    # Imported late: a misspelt field is answered at once.
    import jax

    # The accelerator is for the runs.
    jax.config.update("jax_platforms", "cpu")
    from limr_jax import console
    from limr_jax.storage.workdir import claim, release
    from limr_jax.studies import jobs

    jobs.check_options(config.seed, options)
    if options.tokens < 0:
        raise InputError(f"--tokens={options.tokens} must be 0, for none, or more")
    grid = plan(config, options, arms, out)
    for (arm, _), job in grid.items():
        if options.tokens and not job.config["evaluation"]["every"]:
            raise InputError(
                f"--tokens={options.tokens} compares on a line between evaluations, "
                f"and arm {arm} has none on the way; give --config.evaluation.every=…"
            )
    console.say(describe(grid, arms, out))
    if options.dry_run:
        return 0
    # Seeds and arms may be added in this folder; another base config may not.
    claim(out, {"config": config.to_dict()}, flag="--out")
    try:
        return _run(
            grid,
            out,
            seconds=options.run_seconds,
            tokens=options.tokens,
            title=f"{options.config}: {' / '.join(arms)}",
            command=shlex.join(["python", *launch_words("launch/ablate.py"), *argv]),
        )
    finally:
        release(out)


def _run(
    grid: dict, out: pathlib.Path, *, seconds: float, tokens: int, **titles
) -> int:
    """Run what is not done, and report after each; returns the exit code."""
    from limr_jax import console
    from limr_jax.studies import ablation, jobs, tables

    def write() -> dict:
        return tables.write(
            out / "ablation",
            grid,
            figures=lambda job: ablation.figures(job.workdir, tokens),
            tokens=tokens,
            **titles,
        )

    def after(job) -> str:
        # After each run: a grid that is stopped has its page.
        write()
        return tables.progress_line(job)

    if not jobs.run_all(
        list(grid.values()), out / "compiled", seconds=seconds, after=after
    ):
        console.say(f"stopped; the same command goes on: {out}")
        return 0
    return tables.finish(out / "ablation", grid, write())


def _check_twice(options, arms) -> None:
    """InputError where --config sets a field that --vary varies.

    An arm that has a name may override what --config sets for all.
    """
    set_for_all = {field for field, _ in options.overrides if options.vary}
    for name, settings in arms.items():
        if fields := sorted(set_for_all & {field for field, _ in settings}):
            raise InputError(
                f"arm {name} sets {fields[0]}, and so does --config.{fields[0]}; leave "
                "out one of the two"
            )


def plan(config, options, arms, out: pathlib.Path) -> dict:
    """(arm, seed) → its job, in the order that they run; every config is checked.

    Raises InputError where an arm cannot run, or two arms are one setting.
    """
    from limr_jax.studies import jobs

    grid, digests = {}, {}
    # Seeds outside: a grid that is cut short still compares all arms.
    for seed in range(config.seed, config.seed + options.seeds):
        for arm, settings in arms.items():
            # --config.seed is where all seeds begin; each run gets its own below.
            own = [x for x in options.overrides if x[0] != "seed"]
            fields = [*own, *settings, ("seed", seed)]
            workdir = out / _folder(arm) / f"seed-{seed}"
            try:
                job = jobs.train_job(
                    f"{arm}, seed {seed}",
                    options.config,
                    fields=fields,
                    workdir=workdir,
                )
            except InputError as error:
                raise InputError(f"arm {arm}: {error}") from None
            jobs.check_arm(arm, job)
            # By the whole config: kl=0 and kl=0.0 are one setting.
            same = digests.setdefault(config_digest(job.config), arm)
            if same != arm:
                raise InputError(f"arms {same} and {arm} are one setting; drop one")
            grid[arm, seed] = job
    return grid


def describe(grid: dict, arms: dict, out) -> str:
    """What will run, as a few lines: the arms, and the first command."""
    done = sum(job.done() for job in grid.values())
    first = next(iter(grid.values())).as_typed()
    count = f"{len(grid)} runs, {done} of them done, into {out}; the first of them:"
    return "\n".join([*(f"arm {name}" for name in arms), count, first])


def parse_arms(vary: tuple[str, ...], named: tuple[str, ...]) -> dict[str, tuple]:
    """--vary or --arm → each arm's name and its (field, text) settings, in order."""
    if bool(vary) == bool(named):
        raise InputError("give --vary FIELD=A,B,… or --arm NAME:FIELD=A, not both")
    if vary:
        choices = []
        for text in vary:
            field, equals, values = text.partition("=")
            if not equals or values.count(",") == 0:
                raise InputError(
                    f"--vary {text}: give a field and at least two values, as in "
                    "--vary kl=0,0.01"
                )
            choices.append([_setting(field, value) for value in values.split(",")])
        all_arms = [
            (", ".join(f"{field}={text}" for field, text in settings), settings)
            for settings in itertools.product(*choices)
        ]
    else:
        all_arms = [_named_arm(text) for text in named]
    for name, settings in all_arms:
        fields = [field for field, _ in settings]
        if twice := [field for field in fields if fields.count(field) > 1]:
            raise InputError(f"arm {name}: {twice[0]} is given twice; give it once")
    arms = dict(all_arms)
    if len(arms) < len(all_arms) or len(all_arms) < 2:
        raise InputError(
            f"{len(all_arms)} arms, of which {len(arms)} differ: {'; '.join(arms)}; "
            "give two or more, each once"
        )
    # "a b" and "a/b" would both lie in a_b.
    of_folder: dict[str, str] = {}
    for name in arms:
        if _folder(name) in _TAKEN:
            raise InputError(f"arm {name!r} cannot have that name; give it another")
        other = of_folder.setdefault(_folder(name), name)
        if other != name:
            raise InputError(
                f"arms {other!r} and {name!r} would share the folder "
                f"{_folder(name)}; give one another name"
            )
    return arms


def _named_arm(text: str) -> tuple[str, tuple]:
    name, _, settings = text.partition(":")
    pairs = [each.partition("=") for each in filter(None, settings.split(","))]
    if not name or not all(equals for _, equals, _ in pairs):
        raise InputError(
            f"--arm {text}: write NAME:FIELD=VALUE,FIELD=VALUE, or NAME alone"
        )
    return name, tuple(_setting(field, value) for field, _, value in pairs)


def _setting(field: str, text: str) -> tuple[str, str]:
    field = _SHORT.get(field.strip(), field.strip())
    if field == "seed":
        raise InputError("seed is not an arm: give --seeds N, and each arm has them")
    return field, text.strip()


def _folder(arm: str) -> str:
    return re.sub(r"[^\w.=+-]+", "_", arm)


def _default_out(options, arms) -> str:
    fields = dict.fromkeys(field for each in arms.values() for field, _ in each)
    return f"runs/{config_lib.stem(options.config)}-{_folder(','.join(fields))}"


if __name__ == "__main__":
    config_lib.run_main(main)
