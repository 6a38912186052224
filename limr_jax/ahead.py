"""A step's programs compile side by side, beside what comes before the first step.

A jitted object that was compiled for some shapes is not compiled again when it is
called with them; so the threads here need not hand anything over (tests/test_ahead.py).
"""

import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterator

import jax

from limr_jax import aot, data, stop
from limr_jax.run import Run


@contextlib.contextmanager
def compiling(run: Run, config, prompts: data.Prompts) -> Iterator[Callable]:
    """Compile what a step calls, in threads; gives what waits until all is compiled.

    That raises what a compiler raised, and `stop.Stopped` as waiting for devices does.
    """
    calls = aot.step_calls(run, config, prompts)
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    futures = [pool.submit(_compile, call) for call in aot.longest_first(calls)]

    def over() -> bool:
        done = [future for future in futures if future.done()]
        return len(done) == len(futures) or any(x.exception() for x in done)

    def ready() -> None:
        stop.until(over)
        for future in futures:
            if future.done():
                future.result()

    try:
        yield ready
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _compile(call: aot.Call) -> None:
    with jax.set_mesh(call.mesh):  # of this thread
        call.program.lower(*call.args).compile()
