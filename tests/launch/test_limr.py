"""launch/limr.py: what it selects, which runs it starts, and (soak) all of it."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time

import pytest
from tiny_run import ROOT, arguments, write_problems

from limr_jax.config import load as config_lib
from limr_jax.config.diff import differences
from limr_jax.data import problem_rows
from limr_jax.data.problems import Problems, load_problems
from limr_jax.errors import InputError
from limr_jax.storage import metrics, rollout_dump
from limr_jax.studies import probe as probe_lib

LAUNCH = runpy.run_path(str(ROOT / "launch/limr.py"))
# The test vector of algorithms.md, as right ones of four samples in four epochs.
CURVES = {
    "rises": [0, 1, 2, 3],
    "never": [0, 0, 0, 0],
    "always": [4, 4, 4, 4],
    "soon": [1, 2, 3, 4],
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """(folder, the command's arguments)."""
    folder = tmp_path_factory.mktemp("limr")
    fields = {
        "data.train": write_problems(folder / "train.jsonl", 10),
        "data.eval": write_problems(folder / "eval.jsonl", 3, add=2),
        "num_steps": 2,
        "rollout.max_response_length": 4,
    }
    return folder, [*arguments(fields), "--probe_epochs=2"]


def options(argv):
    return config_lib.load(argv, flags=LAUNCH["_FLAGS"])[1]


@pytest.mark.slow
def test_selects_by_the_probes_curves(given, tmp_path):
    _, argv = given
    probe = tmp_path / "probe"
    dump = rollout_dump.Dump(probe)
    with metrics.Metrics(probe) as log:
        for epoch in range(4):
            log.step(epoch + 1, {"epoch": epoch + 1.0})
            rows = [
                {
                    "id": name,
                    "sample": g,
                    "reward": 0.0,
                    "correct": float(g < right[epoch]),
                }
                for name, right in CURVES.items()
                for g in range(4)
            ]
            dump.add(epoch + 1, rows)
        # The last batch draws one for the epoch that does not come.
        log.step(5, {"epoch": 4.25})
        dump.add(5, [{"id": "never", "sample": 0, "reward": 1.0, "correct": 1.0}])
    rows = [
        (name, {"id": name, "problem": name, "answer": "1", "level": 3})
        for name in CURVES
    ]
    problems = Problems(source="set", **problem_rows.read_fields(rows))
    chosen = options([*argv, "--probe_epochs=4"])
    said = LAUNCH["select"](problems, probe, chosen, 7, tmp_path)
    assert said == "seed 7: problems: FULL 4, LIM 2, RAND 2, LINEAR 2"
    scores = [
        json.loads(x) for x in (tmp_path / "scores.jsonl").read_text().splitlines()
    ]
    assert [row["id"] for row in scores] == list(CURVES)
    assert [row["lim_score"] for row in scores] == pytest.approx(
        [20 / 23, 0, 0, 20 / 23]
    )
    for arm in ("LIM", "LINEAR"):
        kept = load_problems(
            str(tmp_path / f"{arm}-problems.jsonl"), data_dir="/nowhere"
        )
        assert kept.ids == ("rises", "soon")
        assert kept.digest == problems.take([0, 3]).digest
        assert kept.columns["level"] == (3, 3)
    drawn = {
        load_problems(str(tmp_path / "RAND-problems.jsonl"), data_dir="/nowhere").ids
        for seed in range(4)
        if LAUNCH["select"](problems, probe, chosen, seed, tmp_path)
    }
    assert len(drawn) > 1 and {len(ids) for ids in drawn} == {2}


def test_the_runs_differ_by_what_they_draw(given, tmp_path):
    _, argv = given
    chosen = options([*argv, "--config.sampler.name=lim"])
    make = LAUNCH["train_job"]
    jobs = {
        arm: make(chosen, arm, 3, tmp_path, fields)
        for arm, fields in LAUNCH["ARMS"].items()
    }
    made = {arm: job.config for arm, job in jobs.items()}
    # A set is not where a run's starts and ends are written down.
    records = {str(job.beside(".jsonl")) for job in jobs.values()}
    assert not records & {config["data"]["train"] for config in made.values()}
    assert {arm: config["sampler"]["name"] for arm, config in made.items()} == {
        "FULL": "uniform",
        "LIM": "uniform",
        "RAND": "uniform",
        "LINEAR": "uniform",
        "ONLINE": "lim",
    }
    for arm, config in made.items():
        fields = differences(made["FULL"], config)
        names = [x.split(":")[0] for x in fields]
        assert names == {
            "FULL": [],
            "ONLINE": ["sampler.name"],
        }.get(arm, ["data.train"])
        assert config["seed"] == 3
    assert made["LIM"]["data"]["train"] == str(tmp_path / "LIM-problems.jsonl")
    # Each problem is drawn in every epoch; the last batch may go beyond.
    assert probe_lib.steps(10, 4, 2) == 5
    assert probe_lib.steps(10, 4, 3) == 8


def test_a_dry_run_says_what_would_run(given, capsys):
    folder, argv = given
    out = folder / "dry"
    assert LAUNCH["main"]([*argv, f"--out={out}", "--dry_run", "--seeds=2"]) == 0
    said = capsys.readouterr().out
    assert "10 problems" in said and "a probe of 2 epochs, 5 steps" in said
    # Arms of all problems need no probe, whatever its epochs would be.
    for arms, epochs in (("FULL", 1), ("FULL,ONLINE", 10**9)):
        flags = [f"--out={out}", "--dry_run", f"--arms={arms}"]
        assert LAUNCH["main"]([*argv, *flags, f"--probe_epochs={epochs}"]) == 0
        said = capsys.readouterr().out
        assert f"for each of 1 seeds {arms} of 2 steps" in said
        assert "probe" not in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--probe_epochs=1"],
            "--probe_epochs=1 must be at least 2; the paper's probe has 21",
        ),
        (
            [f"--probe_epochs={10**9}"],
            "--probe_epochs=1000000000 of 10 problems are 2500000000 steps, more than "
            "2147483647; give fewer",
        ),
        (
            ["--arms=FULL,LIMM"],
            "--arms='LIMM' is unknown; did you mean 'LIM'? (FULL, LIM, LINEAR, ONLINE, "
            "RAND)",
        ),
        (
            ["--arms=FULL,FULL"],
            "--arms=FULL,FULL names one twice; name each once",
        ),
        (["--seeds=0"], "--seeds=0 must be at least 1"),
        (["--threshold=inf"], "--threshold=inf must be a finite number"),
        (["--linear=-inf"], "--linear=-inf must be a finite number"),
        (["--run_seconds=-1"], "--run_seconds=-1.0 must be 0 or more"),
        (
            ["--config.data.eval="],
            "arm FULL: data.eval is empty, and held-out accuracy is what arms are "
            "compared by; give --config.data.eval=…",
        ),
        (
            ["--config.data.train=nowhere.jsonl"],
            "nowhere.jsonl: no such file; check the path, or name a public set (python "
            "launch/data.py list)",
        ),
        (
            ["--config.reward=none", "--config.algorithm=jepo"],
            "reward=none, and --arms=FULL,LIM,RAND,LINEAR,ONLINE are chosen by a "
            "probe's rewards; give --config.reward=… or --arms=FULL",
        ),
        (
            ["--config.sampler.lim.scores=s"],
            "arm FULL: sampler.lim.scores=s with sampler.name=uniform, which draws by "
            "no scores; take sampler.name=lim, or leave the scores empty",
        ),
        (["--workdir=x"], "--workdir=x is of one run; give --out for the grid's"),
        (
            ["--out=gs://bucket/grid"],
            "--out=gs://bucket/grid is not on this machine; give a local path",
        ),
        (
            ["--tresh=1"],
            "unknown flag --tresh; did you mean --threshold? Flags: --config, "
            "--workdir, --dry_run, --probe_epochs, --threshold, --linear, --arms, "
            "--seeds, --out, --run_seconds",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(given, flags, said):
    folder, argv = given
    out = folder / "wrong"
    with pytest.raises(InputError) as caught:
        LAUNCH["main"]([*argv, f"--out={out}", *flags])
    assert str(caught.value) == said
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--config.kl.coefficient=-1"],
            "--config.kl.coefficient=-1.0 must be from 0 to 1e+06",
        ),
        (
            ["--arms=ONLINE", "--config.group_size=0"],
            "--config.group_size=0 must be from 1 to 65536",
        ),
    ],
)
def test_a_value_that_no_run_takes_is_refused(given, flags, said):
    """In the words that a run has for it (tests/test_bad_input.py)."""
    folder, argv = given
    with pytest.raises(InputError) as caught:
        LAUNCH["main"]([*argv, f"--out={folder / 'wrong'}", *flags])
    assert str(caught.value) == said
    assert not (folder / "wrong").exists()


@pytest.mark.soak
def test_killed_and_killed_again_it_goes_on_to_the_end(given):
    """The probe, every arm and its evaluation; kill -9 after each new result."""
    folder, argv = given
    out = folder / "whole"
    script = str(ROOT / "launch/limr.py")
    # Any score will do: a random policy is never right.
    command = [sys.executable, script, *argv, f"--out={out}", "--threshold=-9"]
    command += ["--linear=-9"]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(ROOT),
    }
    killed = 0
    while True:
        done = len(list(out.glob("**/result.json")))
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True
        )
        while process.poll() is None and len(list(out.glob("**/result.json"))) == done:
            time.sleep(0.2)
        if process.poll() is not None:
            break
        time.sleep(1.0)  # within the run that follows
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += 1
    said = json.loads(process.communicate()[0].strip().splitlines()[-1])
    assert process.returncode == 0 and said["failed"] == 0
    assert killed >= 9
    assert list(said["arms"]) == ["FULL", "LIM", "RAND", "LINEAR", "ONLINE"]
    assert {arm["accuracy"]["seeds"] for arm in said["arms"].values()} == {1}
    page = (out / "limr.md").read_text()
    assert "* seed 0: problems: FULL 10, LIM 10, RAND 10, LINEAR 10" in page
    assert "* ONLINE, seed 0, evaluated: " in page
