"""Runs in a row: what is done, what fails, what is killed. No model is needed."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from limr_jax import platform
from limr_jax.errors import InputError
from limr_jax.storage.workdir import read_result
from limr_jax.studies import child_process, jobs

# A run: it claims its workdir, writes three steps, and does what it is told.
SCRIPT = """
    import json, os, pathlib, sys, time
    workdir, deed = pathlib.Path(sys.argv[1]), sys.argv[2]
    workdir.mkdir(exist_ok=True)
    config = {"num_steps": 3, "deed": deed}
    (workdir / "run.json").write_text(json.dumps({"config": config}))
    with open(workdir / "metrics.jsonl", "a") as file:
        for step in (1, 2, 3):
            print(json.dumps({"step": step}), file=file, flush=True)
    print("said", os.environ["JAX_COMPILATION_CACHE_DIR"], flush=True)
    if deed == "fails":
        sys.exit("error: no, thank you")
    if deed == "waits":
        (workdir / "pid").write_text(str(os.getpid()))
        time.sleep(600)
    (workdir / "result.json").write_text(json.dumps({"pid": os.getpid()}))
"""


@pytest.fixture
def job(tmp_path):
    """(name, deed) → its job."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))

    def make(name, deed="ends"):
        workdir = tmp_path / name
        config = {"num_steps": 3, "deed": deed}
        return jobs.Job(name, (str(script), str(workdir), deed), workdir, 3, config)

    return make


def starts(job):
    return [row for row in jobs.read_record(job) if "started" in row]


def test_one_fails_and_the_others_go_on(job, tmp_path, capsys):
    made = [job("one"), job("two", "fails"), job("three")]
    assert jobs.run_all(made, tmp_path / "cache", after=lambda job: f"{job.name}!")
    assert [each.done() for each in made] == [True, False, True]
    said = capsys.readouterr().out
    assert "[1/3] one: one!; " in said and "[3/3] three: three!; 0 min left" in said
    error = "exit code 1: error: no, thank you"
    assert f"[2/3] two: failed, {error}; " in said
    assert [jobs.failure(each) for each in made] == [None, error, None]
    assert str(tmp_path / "cache") in made[0].beside(".log").read_text()
    start, end = jobs.read_record(made[0])
    assert start["command"] == made[0].as_typed() and end["exit"] == 0
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=jobs.ROOT, capture_output=True, text=True
    )
    assert start["commit"] == (commit.stdout.strip() or None)
    # Again: what is done is not started, what failed is.
    assert jobs.run_all(made, tmp_path / "cache")
    assert [len(starts(each)) for each in made] == [1, 2, 1]
    assert "2 of 3 runs are done already" in capsys.readouterr().out


def test_another_run_lies_there(job):
    mine = job("one")
    mine.workdir.mkdir()
    (mine.workdir / "run.json").write_text('{"config": {"num_steps": 2, "deed": "x"}}')
    with pytest.raises(InputError, match='differs in deed: "x" → "ends"'):
        mine.done()
    # Fewer steps are a run that goes on.
    (mine.workdir / "run.json").write_text(
        '{"config": {"num_steps": 2, "deed": "ends"}}'
    )
    (mine.workdir / "result.json").write_text("{}")
    assert not mine.done()


@pytest.mark.slow
def test_one_that_takes_too_long_is_killed(job, tmp_path):
    slow = job("slow", "waits")
    start = time.monotonic()
    assert jobs.run_all([slow, job("next")], tmp_path / "cache", seconds=5)
    assert time.monotonic() - start < 100
    assert jobs.failure(slow).startswith("killed after 5 s: said ")
    assert job("next").done()


def ended(pid: int) -> bool:
    """Whether the process is gone, or a zombie that its new parent has not met."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


PARENT = """
    import json, pathlib, sys
    from limr_jax.studies import jobs
    fields = json.loads(sys.argv[1])
    made = [jobs.Job(n, c, pathlib.Path(w), s, f) for n, c, w, s, f in fields]
    print(jobs.run_all(made, made[0].workdir.parent / "cache"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_run_ends_with_its_parent(job, tmp_path, number):
    slow, after = job("slow", "waits"), job("after")
    fields = [(x.name, x.command, str(x.workdir), 3, x.config) for x in (slow, after)]
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), json.dumps(fields)],
        env=jobs.environment(tmp_path / "cache"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    wait_for((slow.workdir / "pid").exists)
    time.sleep(0.1)  # it is written
    pid = int((slow.workdir / "pid").read_text())
    os.kill(parent.pid, number)
    said = parent.communicate(timeout=60)[0]
    wait_for(lambda: ended(pid))
    assert not after.workdir.exists()
    assert jobs.failure(after) is None
    if number == signal.SIGTERM:
        assert parent.returncode == 0 and said.endswith("False\n")
    else:
        assert parent.returncode != 0
    # And the same goes on where it was.
    assert read_result(slow.workdir) is None
    assert len(starts(slow)) == 1


def test_a_torn_record_is_read(job):
    one = job("one")
    one.beside(".jsonl").write_text(json.dumps({"started": "x"}) + '\n{"en')
    assert jobs.read_record(one) == [{"started": "x"}]
    assert jobs.failure(one) is None


def test_a_childs_path_is_the_users_behind_the_packages(monkeypatch, tmp_path):
    """Where a reward's module is found in one process, it is found in its runs."""
    root = str(platform.import_root())
    for given, want in ((None, root), ("", root), ("/mine", f"{root}:/mine")):
        if given is None:
            monkeypatch.delenv("PYTHONPATH", raising=False)
        else:
            monkeypatch.setenv("PYTHONPATH", given)
        assert child_process.environment()["PYTHONPATH"] == want
        assert jobs.environment(tmp_path)["PYTHONPATH"] == want
