"""Train: python launch/tpu.py --config configs/tiny.py [--config.field=value …]

--workdir DIR   where the run lies (default runs/<config's name>); again: goes on
--dry_run       print the resolved config, the mesh and the sizes, and stop
--compile_only  compile every program for the TPU slice `slice.type`, which need not be
                there, and print what they need; also as DIR.compile.json. Exit code 1
                if one does not fit. Needs libtpu: pip install -e '.[tpu]'
--plan 'v5e-8, 9h'
                compile for that slice with other meshes, slots, micro-batches and,
                where nothing else ends in time, a coarser base or shorter responses;
                print what fits and ends in time, best first, and why the others do
                not; also as DIR.plan.json. Exit code 1 if none does. Needs libtpu; no
                compile begins after ten minutes, and the same command goes on
--fork RUN --step N
                go on from RUN's checkpoint of step N (default: its newest) in a new
                --workdir, with RUN's config but for what --config.field=value changes:
                policy, critic and optimisers are RUN's, and what the sampler knew if
                it is the same sampler on the same problems
--first_contact measure these devices instead: what they give at best, whether the
                kernels hold, and three steps with random weights and short responses,
                each program beside its bound; also as DIR.first_contact.json. On a
                slice: launch/slice.sh check NAME

On a TPU slice give the same command on every host (launch/slice.sh does). Elsewhere
several processes are one run with, on each of them,

--coordinator HOST:PORT --processes N --process I

Where the package was installed from a wheel, each script of launch/ is a module, and
this one is started by `python -m limr_jax.shipped.launch.tpu` in any folder; --help of
each shows its command. A config that the current folder does not have, such as
configs/tiny.py, is the package's own.

The last line on stdout is one JSON object, the run's result.
"""

import dataclasses
import itertools
import json
import os
import resource
import time

from limr_jax.config import load as config_lib
from limr_jax.config.config_file import refuse_absent
from limr_jax.errors import InputError


def main(argv: list[str]) -> int | None:
    """Parse, check, then train."""
    flags = {"coordinator": "", "processes": 0, "process": -1, "plan": ""}
    flags |= {"compile_only": False, "first_contact": False, "fork": "", "step": -1}
    _refuse_empty(argv)
    config, options = config_lib.load(
        argv, __doc__, flags=flags, run_config=_run_config, run_flag="fork", kind="base"
    )
    _refuse_several(options)
    _check_fork(options)
    if options.plan:
        return plan(config, options.workdir, options.plan)
    if options.compile_only:
        return compile_only(config, options.workdir)
    # Imported late: a misspelt field is answered at once.
    from limr_jax import platform

    with platform.importing_jax():
        from limr_jax.check import check
        from limr_jax.multihost import agree, processes

    check(config)  # before this host waits for the others
    if options.first_contact and not options.coordinator:
        processes.refuse_part_of_a_slice()
    with processes.joined(options.coordinator, options.processes, options.process):
        # Before any collective: hosts that differ would hang in it.
        agree.require_same(
            "config and code",
            {"config": config.to_dict(), "code": agree.code_digest()},
        )
        if options.first_contact:
            return first_contact(config, options.workdir)
        _run(config, options)
    return None


def _refuse_several(options) -> None:
    """InputError where the command line asks for several things."""
    names = ("dry_run", "compile_only", "plan", "first_contact")
    modes = [f"--{name}" for name in names if getattr(options, name)]
    if len(modes) > 1:
        raise InputError(f"{' and '.join(modes)} exclude each other; give one of them")


def _refuse_empty(argv: list[str]) -> None:
    """InputError where --plan or --fork is empty, as from a variable that is not set.

    The run that would begin is not what was asked for.
    """
    for name, example in (("--plan", "'v5e-8, 9h'"), ("--fork", "RUN")):
        # As one word, or as two.
        if f"{name}=" in argv or (name, "") in itertools.pairwise(argv):
            raise InputError(f"{name} is empty; write {name} {example}")


def _run_config(workdir: str):
    # Imported late: a misspelt flag is answered at once.
    from limr_jax.evaluation import trained_policy

    return trained_policy.read_config(workdir)


def _check_fork(options) -> None:
    if not options.fork:
        if options.step != -1:
            raise InputError(f"--step={options.step} is of a fork; give --fork=RUN too")
        return
    if options.step < -1:
        raise InputError(f"--step={options.step} must be a checkpoint's, 0 or more")
    if not options.workdir:
        raise InputError("--fork needs a --workdir of its own; give --workdir=NEW")
    same = [os.path.realpath(path) for path in (options.fork, options.workdir)]
    if same[0] == same[1]:
        raise InputError(
            f"--workdir={options.workdir} is the run that is left; give a new one"
        )


def _run(config, options) -> None:
    from limr_jax import console, fork
    from limr_jax.compilation import warm_up
    from limr_jax.setup import describe, set_up
    from limr_jax.storage import files, gcs, lease, wandb_sink
    from limr_jax.storage.workdir import workdir_path
    from limr_jax.train import train

    # Among the others, who then learn why: one host alone may lack a file.
    if options.config:
        refuse_absent(config, options.config)
    rights = () if options.dry_run else gcs.WRITE
    # Whatever a module with a reward function makes the current folder.
    options.workdir = str(workdir_path(options.workdir, rights))
    if not options.dry_run:
        files.check_writable(f"{options.workdir}/run.json")
        lease.refuse_alive(workdir_path(options.workdir, rights), "--workdir")
    wandb_sink.check(**config.wandb)
    forked = identity_of = None
    if options.fork:
        step = options.step if options.step >= 0 else None
        identity_of = fork.begun(options.workdir, options.fork, step)
    if options.fork and not identity_of:
        forked = fork.read(options.fork, step)
        identity_of = forked.identity_of
        if config.num_steps <= forked.step:
            raise InputError(
                f"num_steps={config.num_steps} is not above step {forked.step}, from "
                "which the run is to go on; raise --config.num_steps, or give an "
                "earlier --step"
            )
    with console.phase("setting up: data, programs"):
        run = set_up(config)
    if forked:
        forked.check(run.programs.state, config=config, identity=run.identity)
    if identity_of:
        run = dataclasses.replace(run, identity=identity_of(run.identity))
    console.say(describe(run, config, whole=options.dry_run))
    if options.dry_run:
        return
    result = train(run, config, options.workdir, warm_up.compiling, forked)
    if result is None:
        console.say(f"stopped and saved; the same command goes on: {options.workdir}")
        return
    console.say(f"results lie in {options.workdir}")
    console.say(json.dumps(result))


def first_contact(config, workdir: str) -> int:
    """Measure these devices; the JSON lies beside the workdir. 1 if no step ran."""
    import jax

    from limr_jax import console
    from limr_jax.compilation import first_contact
    from limr_jax.storage import files, gcs
    from limr_jax.storage.workdir import workdir_path

    path = workdir_path(f"{workdir}.first_contact.json", gcs.WRITE)
    files.check_writable(path)
    report = files.finite(first_contact.run(config))
    # Each host on its own disk, for which of them is process 0 is not known before.
    if jax.process_index() == 0 or not gcs.remote(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(report, indent=1) + "\n")
    console.say(f"all of it lies in {path}: please send it back (launch/CHIPS.md)")
    return 1 if report["steps"]["error"] else 0


def _for_compiling() -> None:
    """What JAX is to be told before it is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # no accelerator is needed
    # A program out of a cache would not say how its memory is laid out.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"


def plan(config, workdir: str, goal_text: str) -> int:
    """The settings that fit the slice and end in time; 1 if there are none."""
    _for_compiling()
    from limr_jax import console
    from limr_jax.compilation import planner
    from limr_jax.storage import files
    from limr_jax.storage.gcs import WRITE
    from limr_jax.storage.workdir import workdir_path

    goal = planner.parse_goal(goal_text)
    path = workdir_path(f"{workdir}.plan.json", WRITE)
    files.check_writable(path)
    rows = planner.plan(config, goal, say=console.say)
    console.say(planner.text(rows, goal, config))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(planner.as_json(rows, goal), indent=1))
    console.say(f"the same lies in {path}")
    return 0 if not rows[0].reason else 1


def compile_only(config, workdir: str) -> int:
    """The compile report; 1 if a program does not fit."""
    _for_compiling()
    from limr_jax import console
    from limr_jax.compilation import calls, compile, report
    from limr_jax.storage import files
    from limr_jax.storage.gcs import WRITE
    from limr_jax.storage.workdir import workdir_path

    # Beside the workdir, which stays untouched.
    path = workdir_path(f"{workdir}.compile.json", WRITE)
    files.check_writable(path)
    begun, plan = time.perf_counter(), calls.plan(config)
    programs = compile.compile_all(
        plan,
        lambda one: console.say(f"compiled {one.name} in {one.seconds:.0f} s"),
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    cost = {
        "wall_seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time(),
        "peak_gib": peak / 2**20,
    }
    compiled = report.report(config, plan, programs=programs, cost=cost)
    console.say(report.text(compiled))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(compiled, indent=1))
    console.say(f"the same lies in {path}")
    return 0 if compiled["fits"] else 1


if __name__ == "__main__":
    config_lib.run_main(main)
