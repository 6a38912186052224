"""A workdir in a bucket, of the server of fake_gcs.py: Orbax, gcsfs and TensorStore.

A kill is shown by the bucket as it was before a change: of a process that dies nothing
else is left. Real processes are at the end.
"""

import json
import random
import runpy
import sys

import jax
import numpy as np
import pytest
from multihost.test_processes import QUICK, REWARD, assert_same_numbers, start
from storage.test_wandb_sink import fake, logged, run_steps  # noqa: F401 (a fixture)
from tiny_run import (
    ROOT,
    arguments,
    at_step,
    configure,
    run_records,
    set_up,
    stopping,
    with_parity,
    write_problems,
)

from limr_jax.config import load as config_lib
from limr_jax.errors import InputError
from limr_jax.storage import checkpoint, gcs, metrics, rollout_dump
from limr_jax.storage.workdir import read_result, read_run, workdir_path
from limr_jax.train import train

RUN = "gs://bucket/deep/run"
STEPS = 4


@pytest.fixture(scope="module")
def parts(tmp_path_factory, quick_compiler):
    """(the parts of a run, its config)"""
    problems = write_problems(tmp_path_factory.mktemp("gs") / "train.jsonl", 10)
    config = configure(problems, num_steps=STEPS, sampler__name="lim")
    return with_parity(set_up(config)), config


@pytest.fixture(scope="module")
def local(parts, tmp_path_factory):
    """The workdir of the same run on the disk."""
    workdir = tmp_path_factory.mktemp("local") / "run"
    train(*parts, workdir)
    return workdir


@pytest.fixture
def launch(held, monkeypatch, capsys):
    """(program, flags) → exit code, stdout, stderr of launch/<it>.py, run here."""

    def start(program, *flags):
        file = f"launch/{program}.py"
        main = runpy.run_path(str(ROOT / file))["main"]
        monkeypatch.setattr(sys, "argv", [file, *map(str, flags)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            config_lib.run_main(main)
        return exit.value.code, *capsys.readouterr()

    return start


def assert_same(parts, local) -> None:
    """What a user is told, and the state to the last bit."""
    assert run_records(RUN) == run_records(local)
    template = parts[0].programs.state
    with (
        checkpoint.Checkpointer(RUN, read_only=True) as here,
        checkpoint.Checkpointer(local, read_only=True) as there,
    ):
        states = [saver.restore(STEPS, template)[0] for saver in (here, there)]
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get(states))


def test_the_wandb_run_of_a_bucket_goes_on(held, fake):  # noqa: F811
    """Its id and what was handed over lie in the bucket: the next host has no other."""
    gcs.check(RUN, gcs.WRITE)  # as a run does first
    run_steps(RUN, [1, 2], mode="online")
    run_steps(RUN, [2, 3], mode="online", done=1)
    calls = fake()
    assert len({x[1]["id"] for x in calls if x[0] == "init"}) == 1
    steps = [row["step"] for row in logged(calls) if "train/reward" in row]
    assert steps == [1, 2, 3]
    names = {name.removeprefix("deep/run/") for name in held.files()}
    assert {"wandb.json", "wandb/sent.json", "metrics.jsonl"} <= names


@pytest.mark.slow
def test_a_run_in_a_bucket_is_that_in_a_folder(held, parts, local, monkeypatch):
    clients, client = [], gcs._client
    monkeypatch.setattr(gcs, "_client", lambda: clients.append(1) or client())
    gcs.check(f"{RUN}/", gcs.WRITE)
    result = train(*parts, RUN)
    assert result["workdir"] == RUN
    # What may be done there is asked once, at the start; the other has the lease.
    assert len(clients) == 2
    assert_same(parts, local)
    # Nothing else is left there, of deletions or of what was tried.
    places = {name.removeprefix("deep/run/").split("/")[0] for name in held.files()}
    folders = {"checkpoints", "rollouts", "tensorboard"}
    assert places == folders | {
        "evals.jsonl",
        "metrics.jsonl",
        "result.json",
        "run.json",
        "warnings.jsonl",  # most responses are cut
    }
    assert train(*parts, RUN) == read_result(RUN)


@pytest.mark.slow
def test_a_stop_and_the_same_call_again(held, parts, local):
    made, config = parts
    with pytest.raises(KeyboardInterrupt):
        train(stopping(made, 3), config, RUN)
    assert read_result(RUN) is None
    train(made, config, RUN)
    assert_same(parts, local)


@pytest.mark.slow
def test_a_damaged_checkpoint(held, parts, local, capsys):
    """The run goes on from the one before it."""
    made, config = parts
    with pytest.raises(KeyboardInterrupt):
        train(stopping(made, STEPS), config, RUN)
    train(made, config, RUN)
    state = f"deep/run/checkpoints/{STEPS}/state/"
    names = [name for name in held.files() if name.startswith(state)]
    name = max(names, key=lambda name: len(held.objects[name][1]))
    generation, data = held.objects[name]
    flipped = bytes([data[len(data) // 2] ^ 1])
    data = data[: len(data) // 2] + flipped + data[len(data) // 2 + 1 :]
    held.objects[name] = generation, data
    del held.objects["deep/run/result.json"]
    capsys.readouterr()
    train(made, config, RUN)
    said = capsys.readouterr().out
    assert f"{RUN}/checkpoints/{STEPS} is damaged: " in said
    assert f"going on after step {STEPS - 2} of {STEPS}" in said
    assert_same(parts, local)


@pytest.mark.slow
@pytest.mark.parametrize(
    "count", [3, pytest.param(10**6, marks=pytest.mark.soak, id="all")]
)
def test_killed_before_a_change(held, parts, local, count):
    held.before = []
    train(*parts, RUN)
    moments, held.before = held.before, None
    chosen = random.Random(0).sample(moments, min(count, len(moments)))
    for objects in chosen:
        held.objects = dict(objects)
        gcs._granted.clear()
        train(*parts, RUN)
        assert_same(parts, local)
    print(f"\n{len(chosen)} kills, {len(moments)} changes of the bucket")


# What TensorStore had under way ends when Orbax listens no more.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("right", ["create", "delete"])
def test_a_right_that_is_taken_away_meanwhile(held, parts, local, right):
    """One line; what was saved stands, and the same call goes on."""
    made, config = parts
    run = at_step(made, 4, lambda: held.denied.add(f"objects.{right}"))
    with pytest.raises(InputError, match="the same command again") as refused:
        train(run, config, RUN)
    assert f"storage.objects.{right}" in str(refused.value)
    gcs._granted.clear()
    with pytest.raises(InputError, match=f"no storage.objects.{right}") as refused:
        train(made, config, RUN)
    held.denied.clear()
    gcs._granted.clear()
    train(made, config, RUN)
    assert_same(parts, local)


@pytest.mark.slow
def test_who_looks_at_a_run(held, parts, local, launch, tmp_path):
    """Export, evaluation, report and LIM scores of a bucket are those of a folder."""
    train(*parts, RUN)
    write_problems(tmp_path / "eval.jsonl", 3, add=2)
    said = {}
    for name, workdir in (("here", RUN), ("there", local)):
        out = tmp_path / name
        for program, *flags in (
            ("export", "--workdir", workdir, "--out", out),
            ("evaluate", "--workdir", workdir, "--out", f"{out}-answers")
            + ("--benchmarks", tmp_path / "eval.jsonl", "--k", 1),
            ("report", workdir, "--out", f"{out}.html"),
            ("lim", "score", "--run", workdir, "--out", f"{out}.jsonl"),
        ):
            code, stdout, stderr = launch(program, *flags)
            assert not code, stderr
            said[program, name] = stdout.splitlines()[-1]
    for program in ("export", "evaluate"):
        here, there = (json.loads(said[program, x]) for x in ("here", "there"))
        assert here["params_digest"] == there["params_digest"]
    assert here["mean_accuracy"] == there["mean_accuracy"]
    assert (tmp_path / "here.jsonl").read_text() == (
        tmp_path / "there.jsonl"
    ).read_text()
    assert RUN in (tmp_path / "here.html").read_text()
    code, _, stderr = launch("report", RUN)
    assert code == 2 and f"{RUN}/report.html is not on this machine" in stderr


def test_what_others_write_is_seen(held):
    """gcsfs would remember a folder's files for good, as it first saw them."""
    gcs.check(RUN)
    folder = workdir_path(RUN) / "checkpoints"
    (folder / "2/a").write_text("of this process")
    assert [path.name for path in folder.iterdir()] == ["2"]
    held.objects["deep/run/checkpoints/4/a"] = (10**6, b"of another host")
    assert sorted(path.name for path in folder.iterdir()) == ["2", "4"]


@pytest.mark.slow
def test_a_reader_needs_no_more_than_it_reads(held, parts, launch, tmp_path):
    train(*parts, RUN)
    gcs._granted.clear()
    held.denied |= {"buckets.get", "objects.create", "objects.delete"}
    code, _, stderr = launch("report", RUN, "--out", tmp_path / "report.html")
    assert not code, stderr
    code, _, stderr = launch("export", "--workdir", RUN, "--out", tmp_path / "out")
    assert code == 2 and stderr.count("\n") == 1
    assert "no storage.buckets.get" in stderr
    assert (
        "give it roles/storage.objectViewer and roles/storage.legacyBucketReader"
        in stderr
    )


@pytest.mark.slow
def test_what_cannot_be_read_meanwhile_is_one_line(held, parts):
    """Rights that were there a moment ago."""
    train(*parts, RUN)
    held.denied.add("objects.get")
    with pytest.raises(InputError, match="run.json cannot be read"):
        read_run(RUN)
    with pytest.raises(InputError, match="metrics.jsonl cannot be read"):
        [*metrics.read_metrics(RUN)]
    with pytest.raises(InputError, match="jsonl.gz cannot be read"):
        [*rollout_dump.read_dump(RUN)]
    with pytest.raises(InputError, match=f"{RUN} cannot be read"):
        metrics.Metrics(RUN)
    held.denied.add("objects.list")
    with pytest.raises(InputError, match="checkpoints cannot be read"):
        checkpoint.Checkpointer(RUN, read_only=True)


ACCOUNT = "give it roles/storage.objectAdmin and roles/storage.legacyBucketReader"


@pytest.mark.parametrize(
    ("workdir", "denied", "said"),
    [
        ("gs://bukcet/run", "", "there is no bucket bukcet; correct the name, or make"),
        (RUN, "buckets.get", ACCOUNT),
        (RUN, "objects.list", ACCOUNT),
        (RUN, "objects.get", ACCOUNT),
        (RUN, "objects.create", ACCOUNT),
        (RUN, "objects.delete", ACCOUNT),
        ("s3://bucket/run", "", "is neither a local folder nor gs://BUCKET/RUN"),
        ("gs:///run", "", "is neither a local folder nor gs://BUCKET/RUN"),
        ("gs:/bucket/run", "", "is neither a local folder nor gs://BUCKET/RUN"),
        ("gs://my-bucket-/run", "", "my-bucket- is no bucket's name"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--compile_only",)])
def test_a_bucket_that_cannot_be_used_is_one_line(
    held, launch, monkeypatch, workdir, denied, said, flags
):
    monkeypatch.setattr("limr_jax.setup.set_up", None)  # nothing is read before
    monkeypatch.setattr("limr_jax.compilation.calls.plan", None)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # as --compile_only sets it
    held.denied.add(denied)
    code, stdout, stderr = launch(
        "tpu",
        *arguments({"data.train": "arithmetic:train"}),
        "--workdir",
        workdir,
        *flags,
    )
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: {workdir}") and stderr.count("\n") == 1, stderr
    assert said in stderr and denied in stderr
    # Where nothing may be deleted what was tried stays, empty.
    assert len(held.objects) == (denied == "objects.delete")


def test_no_gcsfs_and_no_credentials(held, launch, monkeypatch, tmp_path):
    monkeypatch.setattr("limr_jax.setup.set_up", None)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gcsfs", None)
        code, _, stderr = launch(
            "tpu", *arguments({"data.train": "arithmetic:train"}), "--workdir", RUN
        )
    assert code == 2 and stderr.count("\n") == 1
    assert (
        f"{RUN}: gs:// needs gcsfs, and gcsfs is not installed: pip install" in stderr
    )
    # Not Google's server, nor one that gives virtual machines their credentials.
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    code, _, stderr = launch(
        "tpu", *arguments({"data.train": "arithmetic:train"}), "--workdir", RUN
    )
    assert code == 2 and stderr.count("\n") == 1
    assert f"{RUN}: no credentials for Google Cloud" in stderr
    assert held.files() == []


@pytest.mark.parametrize("reached", [False, True])
@pytest.mark.parametrize("kind", ["TransportError", "RefreshError"])
def test_a_token_server_that_does_not_answer_is_no_lack_of_credentials(
    monkeypatch, kind, reached
):
    def fails():
        try:
            raise ConnectionError("no route") if not reached else KeyError("status 404")
        except (ConnectionError, KeyError) as cause:
            carried = exceptions.TransportError("no token")
            carried.__cause__ = cause
            if kind == "TransportError":
                raise carried from cause
            raise exceptions.RefreshError("no token") from carried

    from google.auth import exceptions

    monkeypatch.setattr(gcs, "_client", fails)
    gcs._granted.clear()
    with pytest.raises(InputError) as raised:
        gcs.check(RUN)
    assert str(raised.value) == (
        f"{RUN}: no credentials for Google Cloud (no token); a TPU VM has its "
        "account's, elsewhere: gcloud auth application-default login"
        if reached
        else f"{RUN} cannot be reached (no token); check network and project"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The current folder of both processes."""
    folder = tmp_path_factory.mktemp("processes")
    write_problems(folder / "train.jsonl", 12)
    (folder / "gs_reward.py").write_text(REWARD)
    return folder


FIELDS = {
    "num_steps": 3,
    "model.layers": 1,
    "reward": "gs_reward.chance",
    "sampler.name": "lim",
    "checkpoint.every": 1,
}


def two(folder, *moment) -> list[tuple[int, str]]:
    """(exit code, what it said) of each of two processes, the second until a moment."""
    commands = []
    for strikes in (["generate", 0, "SIGTERM"], moment):
        script = [ROOT / "tests/kill_at.py", *strikes] if moment else []
        flags = arguments(FIELDS | {"data.train": folder / "train.jsonl"})
        argv = [*script, ROOT / "launch/tpu.py", *flags, "--workdir", RUN]
        commands.append([*map(str, argv)])
    quick = QUICK if moment else {}
    return start(folder, commands, DEAD_SECONDS="15", **quick).wait()


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory, quick_compiler):
    """(parts, config, workdir) of the run that one process makes on four devices."""
    given = {name.replace(".", "__"): value for name, value in FIELDS.items()}
    workdir = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        config = configure(folder / "train.jsonl", **given)
        made = set_up(config, devices=4)
        train(made, config, workdir)
    return made, config, workdir


def assert_went_on(said, alone) -> None:
    """Two processes ended the run, with one's rollouts, and numbers to 1e-5."""
    assert [code for code, _ in said] == [0, 0], said
    assert "going on after step" in said[0][1], said
    here, there = run_records(RUN), run_records(alone[2])
    assert here["rollouts"] == there["rollouts"] and len(here["rollouts"]) == 24
    assert_same_numbers(here, there)
    assert max(row["gradient_norm"] for row in there["metrics"]) > 0


@pytest.mark.slow
def test_two_processes_go_on_in_a_bucket(held, folder, alone):
    """As on a slice, where no disk is in common; from what one process began."""
    made, config, _ = alone
    with pytest.raises(KeyboardInterrupt):
        train(stopping(made, 3), config, RUN)
    assert_went_on(two(folder), alone)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("count", "name", "codes"), [(2, "SIGTERM", [0, 0]), (3, "SIGKILL", [1, -9])]
)
def test_two_processes_stopped_and_gone_on(held, folder, alone, count, name, codes):
    said = two(folder, "generate", count, name)
    assert [code for code, _ in said] == codes, said
    assert_went_on(two(folder), alone)
