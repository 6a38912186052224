"""`jax.jit` for the programs of a run, with what compilers are to be told.

Every compiler rounds to bf16 where the program says so. By default XLA's for CPUs and
GPUs leaves a rounding out where it computes in fp32 anyway, in one program here and in
another there: most of what rollout and learner differed by in bf16 came of that
(tests/models/test_bf16.py). libtpu rounds either way.

By XLA:CPU's defaults a step of ../shared/bench compiles in 26 s of processor time, and
the process holds 1.8 GiB; with the options below in 12 s, and 1.0 GiB. The programs are
as quick: most of their time is in matrix products, which a library computes. (At
optimisation level 0 a step takes twice as long.)
"""

import functools
from collections.abc import Callable

import jax

EVERY = {"xla_allow_excess_precision": False}
CPU = EVERY | {
    "xla_backend_optimization_level": 1,
    "xla_cpu_use_fusion_emitters": False,
    # Each part brings the same helpers along, and a step's programs compile side by
    # side already (compilation/warm_up.py).
    "xla_cpu_parallel_codegen_split_count": 1,
}


def jit(mesh: jax.sharding.Mesh, function: Callable, **options) -> Callable:
    """`jax.jit(function, **options)`, for the devices of this mesh.

    It must not be called within another jitted function or transformation: the compiler
    is told once a program.
    """
    cpu = mesh.devices.flat[0].platform == "cpu"
    options["compiler_options"] = known(**CPU) if cpu else EVERY
    return jax.jit(function, **options)


@functools.cache
def known(**options) -> dict:
    """Those of the options (name → value) that this jaxlib's CPU compiler knows.

    It has no list of them, so each is tried on an empty program.
    """

    def has(name) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options={name: options[name]})()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {name: value for name, value in options.items() if has(name)}
