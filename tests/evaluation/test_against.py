"""Two policies on the same problems: by hand, by the command, and what is refused."""

import json
import re
import runpy
import sys
import types

import jax
import numpy as np
import pytest
from tiny_run import ROOT, checkpoints, one_device

from limr_jax.config import load as config_lib
from limr_jax.errors import InputError
from limr_jax.evaluation import (
    against,
    benchmarks,
    flags,
    run_benchmarks,
    trained_policy,
)
from limr_jax.evaluation.benchmarks import Benchmark
from limr_jax.evaluation.evaluator import Evaluation
from limr_jax.models.from_config import read_model_config
from limr_jax.storage import files, gcs, rollout_dump
from limr_jax.storage.workdir import read_result, write_json

LAUNCH = runpy.run_path(str(ROOT / "launch/evaluate.py"))
VERSION = {"max_response_length": 6, "reward": "token", "judge": None, "version": "1"}
ASKED = VERSION | {"answer_phrase": "####", "top_p": 0.95, "grader": {"wall": 1}}


def identity(**benchmarks):
    """Of an evaluation; name → (data, temperature)."""
    made = {
        name.replace("__", "@"): {"data": data, "temperature": temperature}
        for name, (data, temperature) in benchmarks.items()
    }
    return ASKED | {"policy": {"run": "r", "step": 3}, "benchmarks": made}


class Problems(types.SimpleNamespace):
    def __len__(self):
        return len(self.ids)


def write(out, spec, right_Nk, valid_Nk=None) -> types.SimpleNamespace:
    """A benchmark's responses on disk; its task."""
    right_Nk = np.array(right_Nk, float)
    valid_Nk = np.ones_like(right_Nk) if valid_Nk is None else np.array(valid_Nk)
    one = Benchmark(spec, right_Nk.shape[1], 0.0)
    ids = [f"{n}" for n in range(len(right_Nk))]
    rows = [
        {"id": ids[n], "sample": k, "level": None, "answer": "1", "length": 1}
        | {"correct": right_Nk[n, k], "valid": bool(valid_Nk[n, k])}
        | {"well_formed": True, "truncated": False}
        for n, k in np.ndindex(right_Nk.shape)
    ]
    rollout_dump.Dump(out / files.folder_name(one.label)).add(len(ids), rows)
    problems = types.SimpleNamespace(problems=Problems(ids=ids))
    return types.SimpleNamespace(benchmark=one, problems=problems)


def test_a_comparison_by_hand(tmp_path):
    """21 problems greedily, 1 won and 7 lost; 2 of 2 responses each, all the same."""
    here, there = tmp_path / "here", tmp_path / "there"
    greedy = np.repeat([[1, 0], [0, 1], [1, 1]], [1, 7, 13], axis=0)
    tasks = [
        write(here, "a", greedy[:, :1]),
        write(here, "b", [[1, 0], [1, 1], [1, 1]], valid_Nk=[[1, 1], [1, 0], [0, 0]]),
    ]
    write(there, "elsewhere/a", greedy[:, 1:])
    write(there, "b", [[0, 1], [1, 0], [0, 0]])
    suite = types.SimpleNamespace(
        tasks=tasks, identity=identity(a__1=("A", 0.0), b__2=("B", 0.4))
    )
    write_json(there / "run.json", {"params_digest": "d"})
    named = identity(b__2=("B", 0.4), more__1=("C", 0.0))
    named["benchmarks"]["elsewhere/a@1"] = {"data": "A", "temperature": 0.0}
    other = against.OtherPolicy("there", there, named, None)
    said = against.compare(suite, here, other)
    assert said["policy"] == {"run": "r", "step": 3} and said["params_digest"] == "d"
    a, b = (said["benchmarks"][label] for label in ("a@1", "b@2"))
    assert (a["problems"], a["won"], a["lost"], a["p"]) == (21, 1, 7, 18 / 256)
    want = {"value": -6 / 21, "low": -0.508359, "high": -0.013380}
    assert a["difference"] == pytest.approx(want, abs=1e-6)
    assert a["accuracy"]["value"] == 20 / 21
    # What could not be graded is wrong: 1, 1, 0 right of 2, and 1, 1, 0.
    assert (b["won"], b["lost"], b["p"]) == (0, 0, None)
    half = 1.959964 * np.sqrt(2 / 5 / 5)
    none = {"value": 0, "low": -half, "high": half}
    assert b["difference"] == pytest.approx(none, abs=1e-6)
    mean = said["mean_difference"]
    assert mean["value"] == pytest.approx(-3 / 21)
    apart = np.hypot(-6 / 21 + 0.508359, half) / 2
    assert mean["value"] - mean["low"] == pytest.approx(apart, abs=1e-6)
    table = LAUNCH["differences"](said).splitlines()
    assert [re.split(r"  +", line.strip()) for line in table] == [
        ["against step 3 of run r", "problems", "its avg@k %", "difference"]
        + ["won", "lost", "p"],
        ["a@1", "21", "95.2 [77.3, 99.2]", "-28.6 [-50.8, -1.3]", "1", "7", "0.0703"],
        ["b@2", "3", "33.3 [12.0, 73.7]", "+0.0 [-55.4, +55.4]", "0", "0", "-"],
        ["mean", "-14.3 [-44.2, +16.6]"],
    ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"benchmarks": {"a@1": {"data": "B", "temperature": 0.0}}},
            "--against=there has no answers to the problems of a@1 (data A, "
            "temperature 0); it has a@1 (data B, temperature 0); give both the same "
            "problems and benchmarks",
        ),
        (
            {"benchmarks": {"a@2": {"data": "A", "temperature": 0.4}}},
            "--against=there has no answers to the problems of a@1 (data A, "
            "temperature 0); it has a@2 (data A, temperature 0.4); give both the same "
            "problems and benchmarks",
        ),
        (
            {"reward": "math"},
            '--against=there was evaluated otherwise: answer_phrase: absent → "####"; '
            'grader.wall: 1 → absent; reward: "math" → "token"; evaluate both in one '
            "way",
        ),
        (
            {"max_response_length": 7, "version": "0"},
            "--against=there was evaluated otherwise: max_response_length: 7 → 6; "
            'version: "0" → "1"; evaluate both in one way',
        ),
        # Greedily, and in-graph, these are of no account.
        ({"top_p": 0.5, "grader": {"wall": 2}, "policy": {}, "seed": 3}, None),
    ],
)
def test_what_is_no_comparison_is_refused(change, line):
    here = identity(a__1=("A", 0.0))
    other = against.OtherPolicy("there", None, here | change, None)
    if line is None:
        against._refuse_unlike(here, other)
    else:
        with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
            against._refuse_unlike(here, other)


def test_top_p_is_of_account_where_responses_are_drawn():
    here = identity(a__1=("A", 0.4))
    line = (
        "--against=there was evaluated otherwise: top_p: 0.5 → 0.95; evaluate both in "
        "one way"
    )
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        other = against.OtherPolicy("there", None, here | {"top_p": 0.5}, None)
        against._refuse_unlike(here, other)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return checkpoints(tmp_path_factory.mktemp("run"), 5)


class Lucky:
    """An evaluator whose grades are the policy's own noise; nothing is compiled."""

    def __init__(self, mesh, prompts, *, count, k, **options):
        self.shape = count, k

    def answers(self, params, sampling, start):
        total = float(sum(np.abs(x).sum() for x in jax.tree.leaves(params)))
        random = np.random.default_rng(int(1e3 * total))
        right, valid = random.random((2, *self.shape)) < [[[0.5]], [[0.8]]]
        zeros = np.zeros(self.shape, np.int32)
        tokens = np.zeros((*self.shape, 1), np.int32)
        made = right.astype(np.float32), valid, right, ~valid, zeros, tokens, zeros
        yield Evaluation(*(x[start:] for x in made))


@pytest.mark.slow
def test_by_the_command(trained, tmp_path, capsys, monkeypatch):
    """A run's first step against its last; then against what that left on disk."""
    monkeypatch.setattr(run_benchmarks, "make_evaluator", Lucky)
    out, k = tmp_path / "out", 4
    argv = ["--workdir", str(trained), f"--k={k}", "--step=1", "--out", str(out)]
    with one_device(benchmarks):
        LAUNCH["main"]([*argv, "--against", str(trained)])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == read_result(out)
    said = result["against"]
    assert said["policy"] == {"run": str(trained), "step": 2}
    theirs = out / "against" / files.folder_name(f"{trained}@2")
    assert said["out"] == str(theirs)
    (folder,) = [x for x in theirs.iterdir() if x.is_dir()]
    here_N, there_N = (
        np.reshape([row["correct"] * row["valid"] for row in rows], (-1, k)).sum(1)
        for rows in (
            rollout_dump.read_dump(out / folder.name),
            rollout_dump.read_dump(folder),
        )
    )
    (report,) = said["benchmarks"].values()
    assert report["difference"]["value"] == np.mean(here_N - there_N) / k
    assert report["won"] == np.sum(here_N > there_N) > 0
    assert report["lost"] == np.sum(here_N < there_N) and report["p"] is None
    assert said["mean_difference"] == pytest.approx(report["difference"])
    alone = read_result(theirs)
    assert said["params_digest"] == alone["params_digest"] != result["params_digest"]
    (whole,) = alone["benchmarks"].values()
    assert report["accuracy"] == whole["accuracy"]
    # Nothing is answered a second time, nor is what is compared with written to.
    before = {path: path.stat().st_mtime_ns for path in theirs.rglob("*")}
    monkeypatch.setattr(run_benchmarks, "make_evaluator", None)
    with one_device(benchmarks):
        LAUNCH["main"]([*argv, "--against", str(theirs)])
    lines = capsys.readouterr().out.splitlines()
    assert f"against step 2 of run {trained}, as evaluated in {theirs}" in lines
    assert json.loads(lines[-1])["against"] == said
    assert before == {path: path.stat().st_mtime_ns for path in theirs.rglob("*")}


def test_against_a_checkpoint(trained):
    """With its own dimensions and tokenizer it gets the run's questions."""
    argv = ["--workdir", str(trained)]
    given, _ = flags.load(argv, "", flags={}, short={})
    asset = ROOT / "limr_jax/assets/arithmetic"
    with one_device(benchmarks):
        suite = benchmarks.set_up(given, str(trained), 2)
        other = against.find_policy(str(asset), suite, config=given, out="out")
    assert other.identity["policy"] == {"init": str(asset)}
    assert other.suite.compute.model.width == 96
    assert suite.compute.model.width == given.model.width == 16
    assert str(other.out) == f"out/against/{files.folder_name(str(asset))}"
    assert [x.benchmark for x in other.suite.tasks] == [
        x.benchmark for x in suite.tasks
    ]
    kept = ("benchmarks", "reward", "top_p", "max_response_length", "dtype", "seed")
    for name in kept:
        assert other.identity[name] == suite.identity[name], name


def test_a_checkpoint_has_none_of_the_runs_adapters(trained):
    """It is compared as it is: in its own digits, whatever the run is beside."""
    given, _ = flags.load(["--workdir", str(trained)], "", flags={}, short={})
    given.model.base_dtype = "int8"
    given.model.lora.update({"rank": 2, "init": "somewhere"})
    other = against._with_policy(given, str(ROOT / "limr_jax/assets/arithmetic"), None)
    assert read_model_config(other.model, 0).lora is None
    assert other.model.base_dtype == "float32"
    # A run's are its own, and the caller's config stays as it is.
    own = against._with_policy(given, "run", trained_policy.read_config(trained))
    assert own.model.lora.rank == 0 and given.model.lora.rank == 2


def test_a_finished_evaluation_in_a_bucket(monkeypatch):
    """Its address stays one: pathlib would make gs:/bucket of it."""
    monkeypatch.setattr(against, "read_run", lambda *_, **__: identity(a__1=("x", 0)))
    monkeypatch.setattr(against, "read_result", lambda _: {})
    monkeypatch.setattr(gcs, "check", lambda *_: None)
    suite = types.SimpleNamespace(identity=identity(b__1=("x", 0)))
    path = "gs://bucket/evaluation"
    other = against.find_policy(path, suite, config=None, out="out")
    assert str(other.out) == path
    assert str(other.out / "a@1") == f"{path}/a@1"


def test_whose_tokenizer_it_is(trained, tmp_path):
    given, _ = config_lib.load(["--config", str(ROOT / "configs/tiny.py")])
    tokenizer_of = lambda path: against._with_policy(given, str(path), None).tokenizer  # noqa: E731
    own = ROOT / "limr_jax/assets/arithmetic"
    assert tokenizer_of(own) == str(own)
    (tmp_path / "config.json").write_text("{}")
    assert tokenizer_of(tmp_path) == given.tokenizer


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (
            "nowhere",
            "--against=nowhere is neither a run's workdir, a checkpoint's directory "
            "nor a finished evaluation; give one of these",
        ),
        (
            "begun",
            "--against=begun is an evaluation that is not finished; give the command "
            "that it had once more",
        ),
    ],
)
def test_what_is_nobody_is_refused(trained, tmp_path, monkeypatch, path, line, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/run.json").write_text('{"benchmarks": {}}')
    argv = ["evaluate.py", "--workdir", str(trained), "--out=out", f"--against={path}"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as end:
        config_lib.run_main(LAUNCH["main"])
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {line}\n"
    assert not (tmp_path / "out").exists()
