"""Train: python launch/tpu.py --config configs/tiny.py [--config.field=value …]

--workdir DIR   where the run lies (default runs/<config's name>); again: goes on
--dry_run       print the resolved config, the mesh and the sizes, and stop
--compile_only  compile every program for the TPU slice `slice.type`, which need not be
                there, and print what they need; also as DIR.compile.json. Exit code 1
                if one does not fit. Needs libtpu: pip install -e '.[tpu]'

On a TPU slice give the same command on every host (launch/slice.sh does). Elsewhere
several processes are one run with, on each of them,

--coordinator HOST:PORT --processes N --process I

The last line on stdout is one JSON object, the run's result.
"""

import json
import os
import resource
import time

from limr_jax import config as config_lib


def main(argv: list[str]) -> int | None:
    """Parse, check, then train."""
    flags = {"coordinator": "", "processes": 0, "process": -1, "compile_only": False}
    config, options = config_lib.load(argv, __doc__, flags=flags, kind="base")
    if options.compile_only:
        return compile_only(config, options.workdir)
    # Imported late: a misspelt field is answered at once.
    from limr_jax import hosts

    with hosts.joined(options.coordinator, options.processes, options.process):
        hosts.agree(
            "config and code", {"config": config.to_dict(), "code": hosts.code_digest()}
        )
        _run(config, options)
    return None


def _run(config, options) -> None:
    from limr_jax import ahead, bucket, metrics
    from limr_jax.run import describe, set_up
    from limr_jax.train import train

    bucket.check(options.workdir, () if options.dry_run else bucket.WRITE)
    run = set_up(config)
    metrics.say(describe(run, config))
    if options.dry_run:
        return
    result = train(run, config, options.workdir, ahead.compiling)
    if result is None:
        metrics.say(f"stopped and saved; the same command goes on: {options.workdir}")
        return
    metrics.say(f"results lie in {options.workdir}")
    metrics.say(json.dumps(result))


def compile_only(config, workdir: str) -> int:
    """The compile report; 1 if a program does not fit."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # before jax: compiling takes no chip
    # A program out of a cache would not say how its memory is laid out.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    from limr_jax import aot, checkpoint, compile_report, compiled, files, metrics
    from limr_jax.bucket import WRITE

    path = checkpoint.workdir_path(f"{workdir}.compile.json", WRITE)
    begun, plan = time.perf_counter(), aot.plan(config)
    programs = compiled.compile_all(
        plan,
        lambda one: metrics.say(f"compiled {one.name} in {one.seconds:.0f} s"),
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cost = {
        "wall_seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time(),
        "peak_gib": peak / 2**20,
    }
    made = compile_report.report(config, plan, programs, cost)
    metrics.say(compile_report.text(made))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(made, indent=1))
    metrics.say(f"the same lies in {path}")
    return 0 if made["fits"] else 1


if __name__ == "__main__":
    config_lib.run_main(main)
