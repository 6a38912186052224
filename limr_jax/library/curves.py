"""What runs wrote, as arrays and rows: metrics by step, rollouts, reward curves."""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from etils import epath

from limr_jax.errors import InputError, choose
from limr_jax.storage import metrics, rollout_dump
from limr_jax.storage.metric_names import TAGS, tagged
from limr_jax.studies import reward_curves as reward_curves_lib


class Curve(NamedTuple):
    """A number of a run by step."""

    steps: npt.NDArray[np.int64]  # rising; those at which the number is known
    values: npt.NDArray[np.float64]  # finite


def read_curves(run: str | os.PathLike[str]) -> dict[str, Curve]:
    """Every number that a run has logged, by the name that TensorBoard shows it under.

    run: its workdir, finished or not, local or gs://…. "train/…" is of
    metrics.jsonl, a value a step; "eval/…" of evals.jsonl, a value an evaluation. A
    step at which the number was none (null in the file) is left out, and so is a line
    that a kill tore.

    Raises:
      InputError: there is no such run, or it has logged nothing yet.

    >>> import json, pathlib, tempfile
    >>> run = pathlib.Path(tempfile.mkdtemp())
    >>> rows = [{"step": k, "pass_rate": k / 4} for k in (1, 2)]
    >>> text = "".join(json.dumps(row) + "\\n" for row in rows)
    >>> _ = (run / "metrics.jsonl").write_text(text)
    >>> read_curves(run)["train/pass_rate"]
    Curve(steps=array([1, 2]), values=array([0.25, 0.5 ]))
    """
    points: dict[str, list[tuple[int, float]]] = {}
    for file in TAGS:
        for row in metrics.read_metrics(run, file):
            for tag, value in tagged(file, row).items():
                if np.isfinite(value):
                    points.setdefault(tag, []).append((row["step"], value))
    if not points:
        _refuse(run, "metrics.jsonl with a line")
    return {
        name: Curve(
            np.array([step for step, _ in pairs], np.int64),
            np.array([value for _, value in pairs], np.float64),
        )
        for name, pairs in points.items()
    }


def read_rollouts(run: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The rollouts that a run has kept, a row each, in the order of its steps.

    run: its workdir. A row has `step`, `id` (the problem's), `sample`, `prompt`,
    `response`, `reference`, `reward`, `correct`, `valid`, `truncated`, `length` and
    what else limr_jax/storage/README.md names.

    Raises:
      InputError: there is no such run, or it has kept no rollouts.
    """
    rows = iter(rollout_dump.read_dump(run))
    first = next(rows, None)
    if first is None:
        _refuse(run, "rollouts/*.jsonl.gz with a row")
    else:
        yield first
        yield from rows


def reward_curves(
    run: str | os.PathLike[str], *, value: str = "accuracy"
) -> reward_curves_lib.Curves:
    """Each problem's mean accuracy or reward in each epoch, from a run's rollouts.

    run: its workdir. value: "accuracy" or "reward". The result has `ids` and two arrays
    [N, E] of the N problems that were drawn and E epochs: `value_NE`, and `seen_NE`,
    which is False where a problem has no valid rollout in an epoch. They are what
    `limr_jax.algorithms.lim.score` takes.

    Raises:
      InputError: there is no such run, it has kept no rollouts, or not all of a step.
    """
    choose(reward_curves_lib.VALUES, value, "value")
    return reward_curves_lib.read_run(run, value=value)


def _refuse(run: str | os.PathLike[str], what: str) -> None:
    there = "holds no" if epath.Path(run).exists() else "is not there, and so has no"
    raise InputError(f"{run} {there} {what}; give the workdir of a run")
