"""The command line of programs that evaluate a policy: a run's, or a config's."""

from collections.abc import Mapping, Sequence

from limr_jax.config import load as config_lib
from limr_jax.config.config_file import refuse_absent
from limr_jax.errors import InputError


def load(
    argv: Sequence[str],
    description: str,
    *,
    flags: Mapping[str, int | str],
    short: Mapping[str, str],
):
    """The config and the options of a command line with --workdir or --config.

    The arguments and results are those of `config.load.load`; options.step is the run's
    checkpoint that is meant, None for the latest. Raises InputError for whatever is
    wrong with the line.
    """
    config, options = config_lib.load(
        argv,
        description,
        flags={"step": -1} | flags,
        short=short,
        run_config=_run_config,
        kind="base",
    )
    if options.config:
        # Not the data: what is evaluated on is the benchmarks', and no training set.
        refuse_absent(config, options.config, fields=("tokenizer", "model.init"))
    if options.step < -1:
        raise InputError(f"--step={options.step} must be a checkpoint's, 0 or more")
    if options.step >= 0 and not options.workdir:
        raise InputError(f"--step={options.step} is of a run; give --workdir=RUN")
    options.step = options.step if options.step >= 0 else None
    return config, options


def _run_config(workdir):
    # Imported late: a misspelt flag is answered at once.
    from limr_jax.evaluation import trained_policy

    return trained_policy.read_config(workdir)
