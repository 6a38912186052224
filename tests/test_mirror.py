"""A workdir on gs://: a folder of this disk behind the remote paths, but no network.

With a bucket, and the arrays in it: test_gs.py.
"""

import contextlib
import json
import runpy

import fsspec
import pytest
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from tiny_run import ROOT

from limr_jax import aot, checkpoint, compile_report, compiled, metrics
from limr_jax import bucket as bucket_lib
from limr_jax.errors import InputError
from limr_jax.mirror import Mirror

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
    assert (Mirror(RUN, "*.txt").folder / "a.txt").read_text() == "11"
    # What has not changed is not written again.
    (bucket / "a.txt").write_text("of another hand")
    mirror.push()
    assert (bucket / "a.txt").read_text() == "of another hand"


def test_a_local_folder_is_itself(tmp_path):
    mirror = Mirror(tmp_path, "*")
    assert mirror.folder == tmp_path
    mirror.push()


def test_a_compile_report_lies_beside_its_workdir(bucket, tmp_path, monkeypatch):
    """There, and not in a folder gs: of this disk."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # which the command sets
    monkeypatch.setattr(aot, "plan", lambda config: None)
    monkeypatch.setattr(compiled, "compile_all", lambda plan, say: [])
    monkeypatch.setattr(compile_report, "report", lambda *_: {"fits": False})
    monkeypatch.setattr(compile_report, "text", str)
    launched = runpy.run_path(str(ROOT / "launch/tpu.py"))
    assert launched["compile_only"](None, RUN) == 1
    report = bucket.with_name("run.compile.json")
    assert json.loads(report.read_text()) == {"fits": False}
    assert [path.name for path in tmp_path.iterdir()] == ["gs"]


def test_metrics_and_rollouts_of_a_run_that_another_host_takes_up(bucket):
    def write(steps, done):
        with metrics.Metrics(RUN, step=done) as log:
            dump = metrics.Dump(RUN, step=done)
            for step in steps:
                dump.add(step, [{"id": "x", "response": f"of step {step}"}])
                log.step(step, {"reward": step / 2})
                # At once, for a host may be taken away.
                assert [*metrics.read_metrics(RUN)][-1]["step"] == step
            log.evaluation(steps[0], {"accuracy": 0.5})

    write([1, 2, 3], done=0)
    write([3, 4], done=2)
    rows = [(row["step"], row["reward"]) for row in metrics.read_metrics(RUN)]
    assert rows == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]
    assert [row["response"] for row in metrics.read_dump(RUN)] == [
        f"of step {step}" for step in (1, 2, 3, 4)
    ]
    with metrics.Metrics(RUN, step=4, write=False) as log:
        assert log.evaluated(1)["accuracy"] == log.evaluated(3)["accuracy"] == 0.5
    assert len([*(bucket / "tensorboard").iterdir()]) == 1


def test_whose_workdir_it_is_and_its_result(bucket):
    identity = {"config": {"num_steps": 3, "seed": 0}, "version": "1"}
    checkpoint.claim(RUN, identity)
    assert checkpoint.read_result(RUN) is None
    checkpoint.write_result(RUN, {"steps": 3})
    assert checkpoint.read_result(RUN) == {"steps": 3}
    other = {"config": {"num_steps": 3, "seed": 1}, "version": "1"}
    with pytest.raises(InputError, match="differs in config.seed: 0 → 1"):
        checkpoint.claim(RUN, other)
    grown = {"config": {"num_steps": 4, "seed": 0}, "version": "1"}
    checkpoint.claim(RUN, grown)
    assert checkpoint.read_result(RUN) is None
    assert (bucket / "run.json").exists()
    with contextlib.suppress(KeyError):
        checkpoint.release(RUN)
