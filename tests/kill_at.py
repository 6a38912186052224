"""python kill_at.py MOMENT COUNT SIGNAL launch/tpu.py …: runs it, signals itself then.

MOMENT is a function's dotted path (before its COUNT-th call), `file` (before the
COUNT-th change to a file or folder of the workdir), `generate` or `update` (within the
COUNT-th of that phase). A COUNT of 0 signals never; `file` then prints how many changes
there were. What any process of the run compiled is kept where JAX's variables say.
DEAD_SECONDS and BEAT_SECONDS in the environment are those of
limr_jax/multihost/watchdog.py. With PERMUTED JAX numbers the processes the other way
round.
"""

import os
import pkgutil
import runpy
import signal
import sys
import threading
import types

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "open")


def main() -> None:
    moment, count, name, script, *arguments = sys.argv[1:]
    strike = _Strike(int(count), getattr(signal, name))
    for setting in {"DEAD_SECONDS", "BEAT_SECONDS"} & os.environ.keys():
        from limr_jax.multihost import watchdog

        setattr(watchdog, setting, float(os.environ[setting]))
    if "PERMUTED" in os.environ:
        permute()
    keep_compiled()
    if moment == "file":
        workdir = arguments[arguments.index("--workdir") + 1]
        sys.addaudithook(
            lambda event, args: _changes(event, args, workdir) and strike()
        )
    elif moment in ("generate", "update"):
        _around_phases(moment, strike)
    else:
        _before_calls(moment, strike)
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(script))))
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        print(f"{moment}: {strike.seen}", file=sys.stderr)


def permute() -> None:
    """The last process is jax.process_index() 0; on a TPU its place in the slice is."""
    from jax._src.lib import xla_client

    make = xla_client.make_cpu_client

    def permuted(*, node_id, num_nodes, **more):
        return make(node_id=num_nodes - 1 - node_id, num_nodes=num_nodes, **more)

    xla_client.make_cpu_client = permuted


def keep_compiled() -> None:
    """Each process of a run writes what it compiled; in JAX the first alone does.

    A program's name among what is kept has its process's devices in it, so that no two
    of them write one file.
    """
    from jax._src import compiler, distributed

    class Everyone:
        process_id = 0

        def __getattr__(self, name):
            return getattr(distributed.global_state, name)

    compiler.distributed = types.SimpleNamespace(global_state=Everyone())


class _Strike:
    """Called at every such moment; at the right one the signal comes."""

    def __init__(self, count: int, number: int):
        self.count, self.number, self.seen = count, number, 0

    def __call__(self, delay: float = 0.0) -> None:
        self.seen += 1
        if self.seen != self.count:
            return
        if delay:
            threading.Timer(delay, os.kill, (os.getpid(), self.number)).start()
        else:
            os.kill(os.getpid(), self.number)


def _changes(event: str, args: tuple, workdir: str) -> bool:
    if event not in CHANGES or not any(workdir in str(x) for x in args[:2]):
        return False
    reads = event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR)
    return not reads


def _before_calls(path: str, strike: _Strike) -> None:
    owner_path, _, name = path.rpartition(".")
    owner = pkgutil.resolve_name(owner_path)
    function = getattr(owner, name)

    def struck(*args, **kwargs):
        strike()
        return function(*args, **kwargs)

    setattr(owner, name, struck)


def _around_phases(phase: str, strike: _Strike) -> None:
    from limr_jax import step
    from limr_jax.multihost import preemption

    start = step.Phases.start

    def struck(self, name, program, *args):
        if name == phase and program is not preemption.ready:  # which only waits
            strike(delay=1e-3)
        return start(self, name, program, *args)

    step.Phases.start = struck


if __name__ == "__main__":
    main()
