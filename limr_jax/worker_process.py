"""A worker process's own side of worker_pool.py: JSON lines in and out, under limits.

Its command line ends in two arguments: seconds of processor time for one job, and MiB
of memory for the process.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable

from limr_jax import time_limit


def serve(
    answer_to: Callable[[str, float], dict],
    *,
    prepare: Callable[[], object] = lambda: None,
    is_last: Callable[[dict], bool] = lambda reply: False,
) -> None:
    """Answer jobs until stdin ends, as it does with the parent.

    answer_to: (a job's line, its seconds of processor time) → the reply. prepare: is
    called once, before memory is limited and any clock runs. is_last: of a reply,
    whether a fresh process is to have the jobs after it.
    """
    cpu_seconds, memory_mib = float(sys.argv[1]), int(sys.argv[2])
    # Replies get a descriptor of their own: what a library prints to stdout would be
    # read as one.
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    prepare()
    size = memory_mib * 2**20
    # The hard limit as well: nothing in this process can raise it again.
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    # No item starts a process that could outlive its own. (Root's have no such limit,
    # and go with the worker's group.)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    signal.signal(signal.SIGPROF, time_limit.stop)
    # The parent waits for this line, so that no job's clock runs during the imports.
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        reply = answer_to(line, cpu_seconds)
        print(json.dumps(reply), file=replies, flush=True)
        if is_last(reply):
            return
