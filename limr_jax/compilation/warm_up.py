"""A step's programs compile side by side, beside what comes before the first step.

A jitted object that was compiled for some shapes is not compiled again when it is
called with them; so the threads here need not hand anything over
(tests/compilation/test_warm_up.py).
"""

import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterator

import jax

from limr_jax import platform, step, train
from limr_jax.data.prompts import Prompts
from limr_jax.multihost import preemption
from limr_jax.setup import Run


@contextlib.contextmanager
def compiling(run: Run, prompts: Prompts) -> Iterator[Callable]:
    """While it lasts, the programs of a step compile in threads; yields `ready`.

    ready() returns when all are compiled. It raises what a compiler raised, and
    `preemption.Stopped` when the hosts have agreed to stop. prompts: the training set
    on the devices, or its shapes.
    """
    calls = step_calls(run, prompts)
    # Two take as long as all the others together.
    calls.sort(key=lambda call: call.name not in ("update", "generate"))
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    futures = [pool.submit(_compile, run.mesh, call) for call in calls]

    def over() -> bool:
        done = [future for future in futures if future.done()]
        # The first failure ends the wait: no step comes to need the others.
        return len(done) == len(futures) or any(x.exception() for x in done)

    def ready() -> None:
        preemption.until(over)
        for future in futures:
            # After a failure some are still compiling, and are not waited for.
            if future.done():
                future.result()
        # A compiler's, of which a step would make its own on top.
        platform.return_freed_memory()

    try:
        yield ready
    finally:
        # Compiling cannot be interrupted; what has not begun is dropped.
        pool.shutdown(wait=False, cancel_futures=True)


def step_calls(run: Run, prompts: Prompts) -> list[step.Called]:
    """What a step of this run calls, by the step itself; each program's shapes once."""
    programs, recording = run.programs, step.Recording()
    with jax.set_mesh(run.mesh):
        reference = programs.base if programs.reference else None
        if programs.copy:
            reference = programs.copy.eval_shape(programs.state.train.params)
        frozen = step.Frozen(programs.base, reference)
        train.one_step(run, recording, programs.state, frozen, prompts)
    calls = {(call.program, _shapes(call.args)): call for call in recording.calls}
    return list(calls.values())


def _shapes(args: tuple) -> tuple:
    leaves, tree = jax.tree.flatten(args)
    return tree, tuple((x.shape, x.dtype, x.sharding) for x in leaves)


def _compile(mesh: jax.sharding.Mesh, call: step.Called) -> None:
    with jax.set_mesh(mesh):  # of this thread
        call.program.lower(*call.args).compile()
