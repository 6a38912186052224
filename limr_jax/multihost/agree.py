"""The processes of one run tell each other values, and refuse to go on with others.

What they agree on goes through the coordinator's key-value store and never through a
collective, which would hang, or give nonsense, where they differ. Every process calls
these functions in the same order; each call has a name, so that a process that is at
another place is found out.
"""

import hashlib
import json
import pathlib
import socket
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state  # JAX has no public name for the store

import limr_jax
from limr_jax.config.diff import differences
from limr_jax.multihost import preemption, watchdog

REPORT_SECONDS = 600.0  # for a process that lives, but does not say what it does


class Diverged(Exception):
    """The processes are about to do different things; hosts and fields are named."""


_exchanges = 0  # how many there were; every process counts the same
_name_of: dict[int, str] = {}  # `watchdog.name` of those that have reported


def exchange(name: str, value: Any, seconds: float | None = None) -> list:
    """Every process's value (what JSON can hold), in the order of jax.process_index().

    seconds: how long to wait for a process that lives; None: REPORT_SECONDS.

    Raises:
      Diverged: a process that lives did not report in time, or is at another place.
      preemption.Stopped: the processes have agreed to stop.
    """
    if jax.process_count() == 1:
        return [value]
    reports = _reports(name, value, seconds).values()
    return [x["value"] for x in sorted(reports, key=lambda x: x["index"])]


def barrier(name: str) -> None:
    """Wait for all processes; raises as `exchange` does."""
    exchange(name, None)


def broadcast(name: str, value: Any) -> Any:
    """The value of JAX's process 0, on every process; raises as `exchange` does.

    What the others pass as `value` is not read.
    """
    return exchange(name, value if jax.process_index() == 0 else None)[0]


def require_same(name: str, values: Mapping[str, Any]) -> None:
    """Refuse to go on unless all processes have these values (what JSON can hold).

    Raises:
      Diverged: they differ; hosts and fields are named. Every process gets all
        reports, so each of them raises it. Otherwise as `exchange`.
    """
    if jax.process_count() == 1:
        return
    reports = {i: report["value"] for i, report in _reports(name, values).items()}
    groups: dict[str, list[int]] = {}
    for process, report in reports.items():
        # As text, since 1 == True == 1.0 in Python.
        groups.setdefault(json.dumps(report, sort_keys=True), []).append(process)
    if len(groups) == 1:
        return
    (_, [one, *_]), *others = groups.items()
    contrasts = [
        f"{', '.join(map(_name, members))}: "
        + "; ".join(differences(reports[one], reports[members[0]])[:8])
        for _, members in others
    ]
    raise Diverged(
        f"hosts differ in {name}, {_name(one)} → {' | '.join(contrasts)}; start the "
        "same command with the same code, config and data on every host"
    )


def require_same_step(fingerprint: Mapping[str, Any], step, ids_P: jax.Array) -> None:
    """`require_same` of what a step is about to do.

    fingerprint: what the run is, shortly; step: updates so far; ids_P: the problems
    that were drawn. Nothing is read from the devices where there is one process.
    """
    if jax.process_count() > 1:
        step, ids_P = jax.device_get((step, ids_P))
        # A digest, so that reports stay short however many problems a step draws.
        ids = hashlib.sha256(np.ascontiguousarray(ids_P)).hexdigest()
        here = {"step": int(step), "ids": ids, **fingerprint}
        require_same(f"step {int(step) + 1}", here)


def code_digest() -> str:
    """Version of this package, a digest of its source, and JAX's version."""
    folder, sha = pathlib.Path(limr_jax.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        sha.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return f"{limr_jax.__version__} {sha.hexdigest()[:12]} jax {jax.__version__}"


def _reports(name: str, value: Any, seconds=None) -> dict[int, dict]:
    """What each process reports, by its number; `exchange` has the rest."""
    global _exchanges
    client, process = global_state.client, global_state.process_id
    everyone = range(global_state.num_processes)
    seconds = REPORT_SECONDS if seconds is None else seconds
    # The name is in the report, not in the key: processes that are at different places
    # then meet and see it, where else each would wait for the other.
    folder, end = f"limr/exchange/{_exchanges}/", time.monotonic() + seconds
    mine = {"host": socket.gethostname(), "index": jax.process_index()}
    mine |= {"name": name, "value": value}
    client.key_value_set(f"{folder}{process}", json.dumps(mine))
    if _exchanges > 1:  # all have read what was two ago, or they were not in the last
        client.key_value_delete(f"limr/exchange/{_exchanges - 2}/{process}")
    _exchanges += 1
    reports = {}

    def all_there() -> bool:
        reports.update(
            (int(key.rsplit("/", 1)[1]), json.loads(text))
            for key, text in client.key_value_dir_get(folder)
        )
        if len(reports) < len(everyone) and time.monotonic() > end:
            late = [_name(i) for i in everyone if i not in reports]
            raise Diverged(
                f"no report of {name!r} within {seconds:.0f} s from {', '.join(late)}"
            )
        return len(reports) == len(everyone)

    # Asked for again and again, not blocked on, so that a stop is heard meanwhile.
    preemption.until(all_there)
    _name_of.update((i, watchdog.name(i, report)) for i, report in reports.items())
    names = {_name_of[i]: reports[i]["name"] for i in everyone}
    if len(set(names.values())) > 1:
        raise Diverged(f"the processes are at different places: {names}")
    return {i: reports[i] for i in everyone}


def _name(process: int) -> str:
    return _name_of.get(process, f"process {process}")
