"""A workdir on gs://: a folder of this disk behind the remote paths, but no network.

With a bucket, and the arrays in it: test_gcs.py.
"""

import contextlib
import json
import runpy
import shutil
import tempfile

import fsspec
import pytest
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from tiny_run import ROOT

from limr_jax.compilation import calls, compile
from limr_jax.compilation import report as compile_report
from limr_jax.errors import InputError
from limr_jax.storage import gcs as bucket_lib
from limr_jax.storage import lease, metrics, rollout_dump
from limr_jax.storage.gcs_mirror import Mirror
from limr_jax.storage.workdir import claim, read_result, release, write_result

RUN = "gs://bucket/run"


class Bucket(DirFileSystem):
    """gs://bucket/x is the file bucket/x of a folder."""

    def _join(self, path):
        return super()._join(path.removeprefix("gs://") if path else path)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The folder that is gs://."""
    files = Bucket(str(tmp_path / "gs"), fsspec.filesystem("file", auto_mkdir=True))
    monkeypatch.setattr(backend._FileSystemSpecBackend, "fs", lambda self, path: files)
    monkeypatch.setattr(bucket_lib, "check", lambda folder, rights=(): None)
    monkeypatch.setattr(lease, "take", lambda path, flag: None)  # needs generations
    (tmp_path / "gs/bucket/run").mkdir(parents=True)
    return tmp_path / "gs/bucket/run"


def test_a_folder_is_followed_and_fetched(bucket):
    mirror = Mirror(RUN, "*.txt", "deep/*")
    (mirror.folder / "a.txt").write_text("1")
    (mirror.folder / "other").write_text("not followed")
    (mirror.folder / "deep").mkdir()
    (mirror.folder / "deep/b").write_text("2")
    mirror.push()
    files = sorted(str(x.relative_to(bucket)) for x in bucket.rglob("*") if x.is_file())
    assert files == ["a.txt", "deep/b"]
    (mirror.folder / "a.txt").write_text("11")
    (mirror.folder / "deep/b").unlink()
    mirror.push()
    assert (bucket / "a.txt").read_text() == "11"
    assert not (bucket / "deep/b").exists()
    other = Mirror(RUN, "*.txt")
    assert (other.folder / "a.txt").read_text() == "11"
    # What has not changed is not written again.
    (bucket / "a.txt").write_text("of another hand")
    mirror.push()
    assert (bucket / "a.txt").read_text() == "of another hand"
    # The copies on this disk go, and nothing in the bucket with them.
    folders = mirror.folder, other.folder
    mirror.close()
    mirror.push()
    del other
    assert not any(folder.exists() for folder in folders)
    assert (bucket / "a.txt").exists()


def test_what_could_not_be_pushed_stays_on_this_disk(bucket, capsys):
    mirror = Mirror(RUN, "*.txt")
    (mirror.folder / "a.txt").write_text("1")
    bucket.rmdir()
    bucket.write_text("no folder")
    with pytest.raises(InputError):
        mirror.push()
    mirror.close()
    warned = f"warning: {RUN} lacks what lies in {mirror.folder}\n"
    assert capsys.readouterr().err == warned
    assert (mirror.folder / "a.txt").read_text() == "1"
    shutil.rmtree(mirror.folder)


def test_a_local_folder_is_itself(tmp_path):
    mirror = Mirror(tmp_path, "*")
    assert mirror.folder == tmp_path
    mirror.push()
    mirror.close()
    assert tmp_path.exists()


def test_a_compile_report_lies_beside_its_workdir(bucket, tmp_path, monkeypatch):
    """There, and not in a folder gs: of this disk."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # which the command sets
    monkeypatch.setattr(calls, "plan", lambda config: None)
    monkeypatch.setattr(compile, "compile_all", lambda plan, say: [])
    monkeypatch.setattr(compile_report, "report", lambda *_, **__: {"fits": False})
    monkeypatch.setattr(compile_report, "text", str)
    launched = runpy.run_path(str(ROOT / "launch/tpu.py"))
    assert launched["compile_only"](None, RUN) == 1
    report = bucket.with_name("run.compile.json")
    assert json.loads(report.read_text()) == {"fits": False}
    assert [path.name for path in tmp_path.iterdir()] == ["gs"]


def test_metrics_and_rollouts_of_a_run_that_another_host_takes_up(
    bucket, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "here"))

    def write(steps, done):
        with metrics.Metrics(RUN, step=done) as log:
            dump = rollout_dump.Dump(RUN, step=done)
            for step in steps:
                dump.add(step, [{"id": "x", "response": f"of step {step}"}])
                log.step(step, {"reward": step / 2})
                # At once, for a host may be taken away.
                assert [*metrics.read_metrics(RUN)][-1]["step"] == step
            log.evaluation(steps[0], {"accuracy": 0.5})
            dump.close()
        assert not [*(tmp_path / "here").iterdir()]

    write([1, 2, 3], done=0)
    write([3, 4], done=2)
    rows = [(row["step"], row["reward"]) for row in metrics.read_metrics(RUN)]
    assert rows == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]
    assert [row["response"] for row in rollout_dump.read_dump(RUN)] == [
        f"of step {step}" for step in (1, 2, 3, 4)
    ]
    with metrics.Metrics(RUN, step=4, write=False) as log:
        assert log.evaluated(1)["accuracy"] == log.evaluated(3)["accuracy"] == 0.5
    assert len([*(bucket / "tensorboard").iterdir()]) == 1


def test_a_bucket_that_fails_for_a_while_ends_nothing(bucket, monkeypatch, capsys):
    """The files there lag behind, which is said once, and catch up."""
    push, fails = Mirror.push, []

    def failing(mirror):
        if fails:
            raise InputError("not this text") from ConnectionError("gone for a while")
        push(mirror)

    monkeypatch.setattr(Mirror, "push", failing)
    with metrics.Metrics(RUN) as log:
        dump = rollout_dump.Dump(RUN)
        for step in (1, 2, 3, 4):
            fails[:] = [step] if step in (2, 3) else []
            dump.add(step, [{"id": "x"}])
            log.step(step, {"reward": step})
            there = [row["step"] for row in metrics.read_metrics(RUN)]
            assert there == ([1] if fails else list(range(1, step + 1)))
    assert [row["step"] for row in rollout_dump.read_dump(RUN)] == [1, 2, 3, 4]
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {RUN}/rollouts cannot be written (gone for a while); steps that "
        "do not fit are left out of it",
        f"warning: {RUN}/ cannot be written (gone for a while); the files there lag "
        "behind until they can be",
    ]


def test_whose_workdir_it_is_and_its_result(bucket):
    identity = {"config": {"num_steps": 3, "seed": 0}, "version": "1"}
    claim(RUN, identity)
    assert read_result(RUN) is None
    write_result(RUN, {"steps": 3})
    assert read_result(RUN) == {"steps": 3}
    other = {"config": {"num_steps": 3, "seed": 1}, "version": "1"}
    with pytest.raises(InputError, match="differs in config.seed: 0 → 1"):
        claim(RUN, other)
    grown = {"config": {"num_steps": 4, "seed": 0}, "version": "1"}
    claim(RUN, grown)
    assert read_result(RUN) is None
    assert (bucket / "run.json").exists()
    with contextlib.suppress(KeyError):
        release(RUN)
