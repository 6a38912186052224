"""W&B gets what TensorBoard gets, once, and cannot end or hold up a run."""

import contextlib
import glob
import importlib.util
import json
import os
import pathlib
import struct
import time

import pytest
from ml_collections import ConfigDict

from limr_jax.errors import InputError
from limr_jax.storage import metrics, wandb_sink

# Notes each call as a line of $FAKE_CALLS; $FAKE_FAULT names what goes wrong.
FAKE = """
import json, os, time

def note(*call):
    with open(os.environ["FAKE_CALLS"], "a") as file:
        file.write(json.dumps(call) + "\\n")

def fault(name):
    wanted = os.environ.get("FAKE_FAULT", "")
    if wanted == f"{name} raises":
        raise RuntimeError(f"{name} has\\nfailed")
    if wanted == f"{name} hangs":
        time.sleep(600)
    if wanted == f"{name} dies":
        os._exit(9)

class Settings(dict):
    def __init__(self, **values):
        self.update(values)

class Run:
    dir, url = os.environ["FAKE_CALLS"] + "-dir/files", "https://wandb.example/r"

    def define_metric(self, name, **options):
        note("define_metric", name, options)

    def log(self, row):
        fault("log")
        note("log", row)

    def finish(self, exit_code):
        fault("finish")
        note("finish", exit_code)

def init(**arguments):
    note("init", arguments)
    fault("init " + arguments["mode"])
    return Run()

def login(verify):
    fault("login")
    return "WANDB_API_KEY" in os.environ

def teardown():
    note("teardown")

print("W&B prints what it likes")
"""
STEPS = [{"reward": 0.5, "seconds": {"rollout": 1.5}, "kl": float("nan"), "ids": [1]}]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The package wandb is a fake; gives a function: the calls so far."""
    (tmp_path / "site/wandb").mkdir(parents=True)
    (tmp_path / "site/wandb/__init__.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)

    def calls():
        with contextlib.suppress(FileNotFoundError):
            lines = (tmp_path / "calls").read_text().splitlines()
            return [json.loads(line) for line in lines]
        return []

    return calls


def config(mode="offline", project="limr"):
    return ConfigDict({"seed": 3, "wandb": {"project": project, "mode": mode}})


def run_steps(workdir, steps, *, mode="offline", project="limr", done=0):
    """What a run logs: these steps, after `done` of them, and an evaluation."""
    settings = config(mode, project)
    with (
        metrics.Metrics(workdir, step=done) as log,
        wandb_sink.following(log.folder, settings, name="tiny", **settings.wandb),
    ):
        for step in steps:
            log.step(step, STEPS[0] | {"step_of": step})
        log.evaluation(steps[-1], {"accuracy": 0.25})


def logged(calls):
    return [row for name, row in (x for x in calls if x[0] == "log")]


def test_nothing_is_started_unless_asked(tmp_path, fake):
    run_steps(tmp_path / "run", [1], project="")
    wandb_sink.check("", "online")
    assert fake() == [] and not (tmp_path / "run/wandb.json").exists()


def test_the_calls_in_their_order(tmp_path, fake, capsys, monkeypatch):
    # What the environment says otherwise does not count.
    monkeypatch.setenv("WANDB_MODE", "online")
    run_steps(tmp_path / "run", [1, 2])
    calls = fake()
    names = [name for name, *_ in calls]
    assert names == ["init", "define_metric", "define_metric"] + ["log"] * 3 + [
        "finish"
    ]
    begun = calls[0][1]
    known = json.loads((tmp_path / "run/wandb.json").read_text())
    assert known == {"id": begun["id"], "project": "limr"}
    assert begun["config"] == config().to_dict()
    assert begun["mode"] == "offline" and begun["dir"] == str(tmp_path / "run")
    assert begun["name"] == "tiny"
    # Neither output, nor code, nor git, nor this machine.
    settings = begun["settings"]
    assert settings["console"] == "off" and settings["host"] == "unnamed"
    private = ("disable_git", "disable_code", "x_disable_stats", "x_disable_meta")
    assert all(settings[name] is True for name in private)
    assert calls[2] == ["define_metric", "*", {"step_metric": "step"}]
    first = {"step": 1, "train/reward": 0.5, "train/seconds/rollout": 1.5}
    assert logged(calls) == [
        first | {"train/step_of": 1},
        first | {"step": 2, "train/step_of": 2},
        {"step": 2, "eval/accuracy": 0.25},
    ]
    assert calls[-1] == ["finish", 0]
    said = capsys.readouterr()
    place = f"offline, in {tmp_path}/calls-dir, which `wandb sync` sends"
    assert said.out == f"W&B: run {begun['id']} of project limr: {place}\n"
    assert said.err == ""


def test_a_resumed_run_goes_on_in_its_own_and_repeats_nothing(tmp_path, fake):
    """Taken up at step 2 of 4, since the checkpoint was of that one."""
    run_steps(tmp_path / "run", [1, 2, 3, 4], mode="online")
    run_steps(tmp_path / "run", [3, 4, 5], mode="online", done=2)
    calls = fake()
    first, second = (x[1] for x in calls if x[0] == "init")
    assert first["id"] == second["id"] and second["resume"] == "allow"
    steps = [row["step"] for row in logged(calls) if "train/reward" in row]
    assert steps == [1, 2, 3, 4, 5]
    assert [row["step"] for row in logged(calls) if "eval/accuracy" in row] == [4, 5]
    # In another project it is another run, and has all that is there.
    run_steps(tmp_path / "run", [6], project="other", mode="online", done=5)
    calls = fake()
    assert [x[1]["id"] for x in calls if x[0] == "init"][2] != first["id"]
    assert [row["step"] for row in logged(calls)][-8:] == [1, 2, 3, 4, 5, 6, 5, 6]


def test_offline_first_and_then_online_sends_all(tmp_path, fake):
    run_steps(tmp_path / "run", [1, 2])
    run_steps(tmp_path / "run", [3], mode="online", done=2)
    steps = [row["step"] for row in logged(fake()) if "train/reward" in row]
    assert steps == [1, 2, 1, 2, 3]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("init online raises", "cannot be reached (init online has failed)"),
        ("log raises", "gets no more of this run: log has failed"),
        ("log dies", "gets no more of this run: its process has ended (code 9)"),
        ("finish hangs", "has not taken everything in 1 s; `wandb sync"),
    ],
)
def test_a_service_that_fails_ends_and_delays_nothing(
    tmp_path, fake, monkeypatch, capsys, fault, said
):
    monkeypatch.setenv("FAKE_FAULT", fault)
    monkeypatch.setattr(wandb_sink, "FINISH_SECONDS", 1.0)
    start = time.monotonic()
    run_steps(tmp_path / "run", [1, 2], mode="online")
    assert time.monotonic() - start < 20
    assert len([*metrics.read_metrics(tmp_path / "run")]) == 2
    warned = [x for x in capsys.readouterr().err.splitlines() if x]
    assert len(warned) == 1 and said in warned[0]
    if fault.startswith("init"):
        # What no service took lies there for `wandb sync`.
        modes = [x[1]["mode"] for x in fake() if x[0] == "init"]
        assert modes == ["online", "offline"] and len(logged(fake())) == 3


def test_a_run_that_is_killed_has_sent_what_it_logged(tmp_path, fake):
    """All that the kernel leaves of it is the end of the pipe."""
    with metrics.Metrics(tmp_path) as log:
        log.step(1, {"reward": 0.5})
        job = {"folder": str(tmp_path), "project": "limr", "mode": "offline"}
        job |= {"id": "a1", "name": "x", "config": {}, "finish_seconds": 10.0}
        process, teller = wandb_sink._start(job)
        process.stdin.close()
        assert process.wait(60) == 0
    teller.join()
    process.stdout.close()
    assert fake()[-1] == ["finish", 1]
    assert [row["step"] for row in logged(fake())] == [1]


@pytest.mark.parametrize(
    "damage",
    ["[]", "{", '{"online": [1]}', '{"online": {"metrics.jsonl": 1e999}}', "[" * 10**5],
)
def test_a_damaged_record_is_none(tmp_path, fake, capsys, damage):
    """Lines then stand twice in W&B, or its run is a new one; the run goes on."""
    run_steps(tmp_path / "run", [1], mode="online")
    (tmp_path / "run/wandb/sent.json").write_text(damage)
    run_steps(tmp_path / "run", [2], mode="online", done=1)
    assert [row["step"] for row in logged(fake())][-4:] == [1, 2, 1, 2]
    (tmp_path / "run/wandb.json").write_text(damage)
    run_steps(tmp_path / "run", [3], mode="online", done=2)
    assert len({x[1]["id"] for x in fake() if x[0] == "init"}) == 2
    assert capsys.readouterr().err == ""


def test_a_pipe_in_the_records_place_is_not_waited_for(tmp_path, fake, capsys):
    os.mkfifo(tmp_path / "wandb.json")
    run_steps(tmp_path, [1])
    said = capsys.readouterr().err
    assert said.startswith("warning: W&B gets nothing of this run: ")
    assert "is no file, but a pipe" in said and fake() == []
    assert len([*metrics.read_metrics(tmp_path)]) == 1


def refused(project="limr", mode="offline"):
    with pytest.raises(InputError) as raised:
        wandb_sink.check(project, mode)
    return str(raised.value)


def test_what_cannot_work_is_one_line(tmp_path, fake, monkeypatch):
    wandb_sink.check("limr", "offline")
    assert "mode=online needs an API key (there is none)" in refused(mode="online")
    monkeypatch.setenv("FAKE_FAULT", "login raises")
    assert "(login has failed)" in refused(mode="online")
    assert "without /\\#?%:" in refused("a/b")
    assert "at most 128" in refused("a" * 129)
    monkeypatch.setenv("PYTHONPATH", "")
    if importlib.util.find_spec("wandb") is None:
        # A folder of this name, as W&B makes them, is no package.
        monkeypatch.chdir(tmp_path)
        (tmp_path / "wandb").mkdir()
        assert "pip install 'limr_jax[wandb]'" in refused()


def history(path):
    """The rows of a .wandb file: leveldb's log format, of protobuf records."""
    from wandb.proto import wandb_internal_pb2

    data = pathlib.Path(path).read_bytes()
    place, record, rows = 7, b"", []
    while place + 7 <= len(data):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            row = wandb_internal_pb2.Record.FromString(record).history.item
            rows.append({"/".join(x.nested_key): json.loads(x.value_json) for x in row})
            record = b""
    return [row for row in rows if row]


def test_offline_for_real(tmp_path, monkeypatch):
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # W&B's own folder is no package
        pytest.skip("the extra [wandb] is not installed")
    run_steps(tmp_path / "run", [1, 2])
    run_steps(tmp_path / "run", [2, 3], done=1)
    rows = []
    for path in sorted(glob.glob(f"{tmp_path}/run/wandb/offline-run-*/*.wandb")):
        rows += history(path)
    steps = [row["step"] for row in rows if "train/reward" in row]
    assert sorted(steps) == [1, 2, 3]
    assert {row["train/reward"] for row in rows if "train/reward" in row} == {0.5}
    assert sorted(row["step"] for row in rows if "eval/accuracy" in row) == [2, 3]
