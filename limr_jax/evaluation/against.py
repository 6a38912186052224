"""Two policies on the same problems: the difference, problem by problem.

What makes a problem hard is hard for both, and falls out of the difference: its
interval is far narrower than those of the two accuracies, which may well overlap.
"""

import copy
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from etils import epath

from limr_jax.config import diff
from limr_jax.errors import InputError
from limr_jax.evaluation import (
    benchmarks,
    run_benchmarks,
    statistics,
    trained_policy,
)
from limr_jax.evaluation.accuracy import right
from limr_jax.models.from_config import DIMENSIONS
from limr_jax.platform import resolve
from limr_jax.storage import files
from limr_jax.storage.workdir import read_result, read_run, workdir_path


@dataclasses.dataclass(frozen=True)
class OtherPolicy:
    """The policy that the evaluated one is compared with, and its evaluation."""

    path: str  # as the user named it
    out: epath.Path | pathlib.Path  # the folder of its evaluation; may be on gs://
    identity: Mapping  # as `benchmarks.BenchmarkSuite` has it
    suite: benchmarks.BenchmarkSuite | None  # None: its evaluation is finished


def find_policy(
    path: str, suite: benchmarks.BenchmarkSuite, *, config, out
) -> OtherPolicy:
    """The policy at `path`, to be evaluated on the benchmarks of `suite`.

    path: a run's workdir (its latest checkpoint is meant), a checkpoint in the Hugging
    Face layout, or the folder of a finished evaluation. The first two are evaluated
    into a folder below `out`, by `compare`. config: that `suite` was set up from.
    Raises InputError where the path is none of these, or its evaluation has other
    problems or another protocol.
    """
    stored = read_run(path, missing_ok=True)
    # An evaluation's run.json has these; a training run's has them in its config.
    if stored is not None and "benchmarks" in stored:
        if read_result(path) is None:
            raise InputError(
                f"--against={path} is an evaluation that is not finished; give the "
                "command that it had once more"
            )
        # pathlib would make gs:/bucket of gs://bucket.
        other = OtherPolicy(
            path=path, out=workdir_path(path), identity=stored, suite=None
        )
    else:
        run_config = trained_policy.read_config(path) if stored is not None else None
        other_suite = benchmarks.set_up(
            _with_policy(config, path, run_config), path if run_config else ""
        )
        # Policy and step are the folder's name: no responses are taken for others'.
        name = "@".join(map(str, other_suite.identity["policy"].values()))
        folder = pathlib.Path(out, "against", files.folder_name(name))
        other = OtherPolicy(
            path=path, out=folder, identity=other_suite.identity, suite=other_suite
        )
    _refuse_unlike(suite.identity, other)
    return other


def _with_policy(config, path: str, run_config):
    """A copy of the config with the policy of a run, or of a checkpoint (None)."""
    other = copy.deepcopy(config)
    # How the other one is computed is the caller's: both alike.
    kept = {name: config.model[name] for name in ("dtype", "attention")}
    with other.unlocked():
        if run_config:
            other.model.update(run_config.model)
            other.tokenizer = run_config.tokenizer
        else:
            folder = resolve(path)
            if not (folder / "config.json").is_file():
                raise InputError(
                    f"--against={path} is neither a run's workdir, a checkpoint's "
                    "directory nor a finished evaluation; give one of these"
                )
            # 0 is what its config.json says: the two may be of different sizes.
            other.model.update(dict.fromkeys((*DIMENSIONS, "vocab_size"), 0))
            other.model.update({"init": path, "preset": ""})
            # The checkpoint as it is: the caller's adapters are of another policy.
            other.model.update({"base_dtype": "float32"})
            other.model.lora.update({"rank": 0, "init": ""})
            own = any((folder / f"tokenizer.{x}").is_file() for x in ("json", "model"))
            other.tokenizer = path if own else config.tokenizer or config.model.init
        other.model.update(kept)
    return other


def _refuse_unlike(identity: Mapping, other: OtherPolicy) -> None:
    """InputError unless the other one answers the same problems in the same way."""
    others = set(_protocols(other.identity).values())
    for label, protocol in _protocols(identity).items():
        if protocol not in others:
            listed = ", ".join(
                _shown(name, benchmark)
                for name, benchmark in other.identity["benchmarks"].items()
            )
            here = _shown(label, identity["benchmarks"][label])
            raise InputError(
                f"--against={other.path} has no answers to the problems of {here}; it "
                f"has {listed}; give both the same problems and benchmarks"
            )
    fields = diff.differences(_comparable(other.identity), _comparable(identity))
    if fields:
        raise InputError(
            f"--against={other.path} was evaluated otherwise: {'; '.join(fields)}; "
            "evaluate both in one way"
        )


def _shown(label: str, benchmark: Mapping) -> str:
    digest, temperature = benchmark["data"][:8], benchmark["temperature"]
    return f"{label} (data {digest}, temperature {temperature:g})"


class _Protocol(NamedTuple):
    """What makes two benchmarks one: a set may have another name elsewhere."""

    data: str  # digest of the problems
    k: str  # responses to each
    temperature: float


def _protocols(identity: Mapping) -> dict[str, _Protocol]:
    """The protocol of each benchmark by its label, which ends in @k."""
    return {
        label: _Protocol(
            data=benchmark["data"],
            k=label.rpartition("@")[2],
            temperature=benchmark["temperature"],
        )
        for label, benchmark in identity["benchmarks"].items()
    }


def _comparable(identity: Mapping) -> dict:
    """What must be alike, beside the problems, for accuracies to be comparable.

    Not the seed: problems are what is paired, and noise is drawn for each policy.
    """
    names = ["max_response_length", "reward", "judge", "version"]
    names.append("answer_phrase" if identity["reward"] == "token" else "grader")
    # Greedily, top-p leaves the best token where it is.
    if any(x["temperature"] for x in identity["benchmarks"].values()):
        names.append("top_p")
    return {name: identity[name] for name in names}


def compare(suite: benchmarks.BenchmarkSuite, out, other: OtherPolicy) -> dict:
    """The paired differences, the suite's policy's accuracy minus the other's.

    out: the folder with the responses of the suite's policy. Those of the other are
    written where they are not there yet. The result is a dict that JSON can hold, with
    a 95 % interval for each difference, and with one response a problem McNemar's
    exact p.
    """
    if other.suite is not None:
        run_benchmarks.run_suite(other.suite, other.out)
    protocols = _protocols(suite.identity)
    other_label = {x: label for label, x in _protocols(other.identity).items()}
    reports, differences = {}, []
    for task in suite.tasks:
        label, k = task.benchmark.label, task.benchmark.k
        other_folder = other.out / files.folder_name(other_label[protocols[label]])
        # Right responses of each problem, 0 to k; both in the order of the set.
        here_N, there_N = (
            right(run_benchmarks.read_responses(folder, task).result).sum(axis=1)
            for folder in (run_benchmarks.folder(out, task), other_folder)
        )
        won, lost = int((here_N > there_N).sum()), int((here_N < there_N).sum())
        differences.append(statistics.paired((here_N - there_N) / k))
        reports[label] = {
            "problems": len(here_N),
            "accuracy": statistics.proportion(there_N, [k] * len(there_N)).as_json(),
            "difference": differences[-1].as_json(),
            "won": won,
            "lost": lost,
            # McNemar's pairs are independent, which a problem's k responses are not.
            "p": statistics.sign_test(won, lost) if k == 1 else None,
        }
    return {
        "policy": other.identity["policy"],
        "params_digest": read_run(other.out)["params_digest"],
        "benchmarks": reports,
        # Of the benchmarks' differences, each of the same weight.
        "mean_difference": statistics.average(differences).as_json(),
        "out": str(other.out),
    }
