"""The command line of programs that look at a policy: a run's, or a config's."""

from collections.abc import Mapping, Sequence

from limr_jax import config as config_lib
from limr_jax.errors import InputError


def load(
    argv: Sequence[str],
    description: str,
    *,
    flags: Mapping[str, int | str],
    short: Mapping[str, str],
):
    """(config, options) of --workdir or --config, as `config.load` has them.

    options.step: the run's checkpoint that is meant, None for the latest.
    """
    config, options = config_lib.load(
        argv,
        description,
        flags={"step": -1} | flags,
        short=short,
        run_config=_run_config,
        kind="base",
    )
    if options.step >= 0 and not options.workdir:
        raise InputError(f"--step={options.step} is of a run; give --workdir=RUN")
    options.step = options.step if options.step >= 0 else None
    return config, options


def _run_config(workdir):
    # Imported late: a misspelt flag is answered at once.
    from limr_jax import past_run

    return past_run.read_config(workdir)
