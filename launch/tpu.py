"""Train: python launch/tpu.py --config configs/tiny.py [--config.field=value …]

--workdir DIR   where the run lies (default runs/<config's name>); again: goes on
--dry_run       print the resolved config, the mesh and the sizes, and stop

On a TPU slice give the same command on every host (launch/slice.sh does). Elsewhere
several processes are one run with, on each of them,

--coordinator HOST:PORT --processes N --process I

The last line on stdout is one JSON object, the run's result.
"""

import json

from limr_jax import config as config_lib


def main(argv: list[str]) -> None:
    """Parse, check, then train."""
    flags = {"coordinator": "", "processes": 0, "process": -1}
    config, options = config_lib.load(argv, __doc__, flags=flags)
    # Imported late: a misspelt field is answered at once.
    from limr_jax import hosts

    with hosts.joined(options.coordinator, options.processes, options.process):
        hosts.agree(
            "config and code", {"config": config.to_dict(), "code": hosts.code_digest()}
        )
        _run(config, options)


def _run(config, options) -> None:
    from limr_jax import metrics
    from limr_jax.run import describe, set_up
    from limr_jax.train import train

    run = set_up(config)
    metrics.say(describe(run, config))
    if options.dry_run:
        return
    result = train(run, config, options.workdir)
    if result is None:
        metrics.say(f"stopped and saved; the same command goes on: {options.workdir}")
        return
    metrics.say(f"results lie in {options.workdir}")
    metrics.say(json.dumps(result))


if __name__ == "__main__":
    config_lib.run_main(main)
