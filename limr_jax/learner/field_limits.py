"""What every field of a run may be, with those that an algorithm or a sampler owns."""

from collections.abc import Callable

from limr_jax.config import limits
from limr_jax.config.config_file import leaves
from limr_jax.errors import choose
from limr_jax.learner import advantages
from limr_jax.samplers import allocation, from_config


def check_fields(config, name: Callable[[str], str] = str) -> None:
    """Refuse a field of the config whose value it may not have.

    name: what a field is called in the error.

    Raises:
      InputError: for the first such field: an unknown algorithm or sampler, or a value
        out of the limits of config/limits.py, of ALGORITHMS, SAMPLERS
        or ALLOCATIONS.
    """
    choose(advantages.ALGORITHMS, config.algorithm, name("algorithm"))
    choose(from_config.SAMPLERS, config.sampler.name, name("sampler.name"))
    own = advantages.own_limits() | from_config.own_limits()
    own |= allocation.own_limits()
    limits.check(leaves(config.to_dict()), name, rows=limits.LIMITS | own)
