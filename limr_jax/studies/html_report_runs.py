"""What a page shows of runs: their files as they are, and which differ in the seed.

A run may be going on, and any file but run.json may be damaged: what cannot be read is
named, and the rest is shown.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from limr_jax.config import load
from limr_jax.config.diff import differences
from limr_jax.errors import InputError
from limr_jax.storage import gcs, metrics
from limr_jax.storage.workdir import read_kernels, read_result, read_run

WARNINGS = metrics.WARNINGS
# What launch/tpu.py writes beside a workdir, of --compile_only and the like.
BESIDE = ("compile", "plan", "first_contact")
_MOST_WARNINGS = 1000  # lines of warnings.jsonl that are shown


@dataclasses.dataclass(frozen=True)
class ReportRun:
    """One run's files but its rollouts, as far as they can be read."""

    name: str  # its workdir as the user named it
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]  # of metrics.jsonl, at least one, by step
    evals: Sequence[Mapping[str, Any]]  # of evals.jsonl, by step
    result: Mapping[str, Any]  # empty where the run is not finished
    warnings: Sequence[Mapping[str, Any]]  # rows of warnings.jsonl
    kernels: Sequence[Mapping[str, Any]]
    kernels_fault: str | None  # why kernels.json cannot be read
    beside: Mapping[str, Mapping]  # BESIDE → the object in WORKDIR.BESIDE.json
    missing: Sequence[str]  # what cannot be read, a line each

    @property
    def seed(self):
        """The config's seed; None where it has none."""
        return self.config.get("seed")

    @property
    def finished(self) -> bool:
        """Whether there is a result of it."""
        return bool(self.result)

    def curve(self, name: str, *, evals: bool = False) -> dict[int, float]:
        """Step → the number of this name, where a line has one."""
        return {
            row["step"]: value
            for row in (self.evals if evals else self.rows)
            if (value := metrics.number(row, name)) is not None
        }


@dataclasses.dataclass(frozen=True)
class RunGroup:
    """Runs that differ in the seed only; as a rule there is one run in it."""

    label: str
    runs: Sequence[ReportRun]


def read_run_files(workdir) -> ReportRun:
    """One run, finished or going on; InputError where there is no step of one yet."""
    name = str(workdir)
    rows = _by_step(metrics.read_metrics(workdir))
    stored = read_run(workdir).get("config")
    # An evaluation's run.json has no config.
    if not isinstance(stored, Mapping):
        raise InputError(
            f"{name}/run.json has no config of a run: it is damaged, or of an "
            "evaluation; give the workdir of a run"
        )
    if not rows:
        raise InputError(
            f"{name} has no step of a run yet that can be read; wait for one"
        )
    missing = []
    for file in (metrics.METRICS, metrics.EVALS, WARNINGS):
        if count := metrics.damaged_lines(workdir, file):
            missing.append(f"{name}/{file}: {count} lines cannot be read")
    result, beside, kernels, kernels_fault = {}, {}, [], None
    try:
        result = read_result(workdir) or {}
    except InputError as error:
        missing.append(str(error))
    try:
        kernels = read_kernels(workdir)
    except InputError as error:
        kernels_fault = str(error)
    for kind in BESIDE:
        try:
            if record := _read_beside(workdir, kind):
                beside[kind] = record
        except InputError as error:
            missing.append(str(error))
    return ReportRun(
        name=name,
        config=stored,
        rows=rows,
        evals=_by_step(metrics.read_metrics(workdir, metrics.EVALS)),
        result=result,
        warnings=[*metrics.read_metrics(workdir, WARNINGS)][:_MOST_WARNINGS],
        kernels=kernels,
        kernels_fault=kernels_fault,
        beside=beside,
        missing=missing,
    )


def _by_step(rows: Iterator[Mapping]) -> list[Mapping]:
    """The rows by step; of two of one step the later."""
    return [row for _, row in sorted({row["step"]: row for row in rows}.items())]


def _read_beside(workdir, kind: str) -> Mapping[str, Any]:
    """What `launch/tpu.py --KIND` wrote beside the workdir; empty if nothing.

    InputError where it cannot be read.
    """
    path = epath.Path(f"{str(workdir).rstrip('/')}.{kind}.json")
    with gcs.reading(path):
        gcs.refuse_pipe(path)
        text = path.read_bytes() if path.exists() else b"{}"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); mend it") from error
    return value if isinstance(value, dict) else {}


def groups(runs: Sequence[ReportRun]) -> list[RunGroup]:
    """The runs by config without its seed, in the order of the first of each."""
    members: dict[str, list[ReportRun]] = {}
    for run in runs:
        fields = {name: repr(value) for name, value in load.leaves(run.config)}
        fields.pop("seed", None)
        members.setdefault(json.dumps(sorted(fields.items())), []).append(run)
    names = short_names([run.name for run in runs])
    shown = {run.name: name for run, name in zip(runs, names)}
    return [
        RunGroup(_label([shown[run.name] for run in each]), each)
        for each in members.values()
    ]


def _label(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    listed = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{listed} ({len(names)} seeds)"


def short_names(names: Sequence[str]) -> list[str]:
    """The last part of each path; whole paths where two would be the same."""
    last = [pathlib.PurePosixPath(name).name or name for name in names]
    return last if len(set(last)) == len(last) else list(names)


def setting_differences(first: ReportRun, other: ReportRun) -> list[str]:
    """How the other's config differs, a line a field; "no field" where it does not."""
    return differences(first.config, other.config) or ["no field"]
