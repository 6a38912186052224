"""Real processes of launch/tpu.py, killed: the same command goes on, bit for bit.

The reward is a user's function in the current folder. Stops within one process are in
test_train.py.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tiny_run import ROOT, arguments, configure, run_records, set_up, write_problems

import limr_jax
from limr_jax.errors import InputError
from limr_jax.storage import checkpoint, metrics, rollout_dump
from limr_jax.storage.workdir import claim

STEPS = 8
REWARD = '''
"""Something that a random policy gets now and then."""


def chance(prompts, completions, **columns):
    sums = [sum(map(ord, c)) for c in completions]
    return [None if n % 7 == 0 else n % 4 / 3 for n in sums]
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The current folder of every process: problems and the reward's module."""
    folder = tmp_path_factory.mktemp("kill")
    write_problems(folder / "train.jsonl", 10)
    (folder / "kill_reward.py").write_text(REWARD)
    return folder


def fields(folder) -> dict:
    """Three steps are an epoch; a checkpoint after every other step."""
    return {
        "data.train": folder / "train.jsonl",
        "num_steps": STEPS,
        "model.layers": 1,
        "sampler.name": "lim",
        "reward": "kill_reward.chance",
        "rollout.max_response_length": 10,
    }


class Outcome(str):
    """What a process said; `code` is its exit status, `out` what it said on stdout."""

    code: int
    out: str


def launch(folder, workdir, *moment, devices=1, seconds=None, **more) -> Outcome:
    """Run launch/tpu.py to its end, or to that moment of kill_at.py.

    What one process compiled, the next one loads, but a process that is killed writes
    nothing where they look: half of a file would stay there. seconds: after so many its
    whole process group is killed. more: fields of the config, a__b for a.b.
    """
    given = fields(folder) | {n.replace("__", "."): value for n, value in more.items()}
    script = str(ROOT / "launch/tpu.py")
    if moment:
        script = [str(ROOT / "tests/kill_at.py"), *map(str, moment), script]
    else:
        script = [script]
    made = subprocess.Popen(
        [sys.executable, *script, *arguments(given), "--workdir", str(workdir)],
        cwd=folder,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            # The compiler's time is most of these tests'.
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"
            if moment or seconds
            else "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = made.communicate(timeout=seconds or 300)
    except subprocess.TimeoutExpired:
        os.killpg(made.pid, signal.SIGKILL)
        out, err = made.communicate()
        assert seconds, out + err
    said = Outcome(out + err)
    said.code, said.out = made.returncode, out
    return said


LONGER = {"num_steps": 200, "checkpoint__every": 3}


def parts(folder, changes=()):
    """The parts of the run, with these fields changed; nothing is compiled."""
    given = fields(folder) | dict(changes)
    given = {name.replace(".", "__"): value for name, value in given.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        return set_up(configure(given.pop("data__train"), **given))


@pytest.fixture(scope="module")
def template(folder):
    """Shapes and shardings of the run's state."""
    return parts(folder).programs.state


def state_of(workdir, template):
    with checkpoint.Checkpointer(workdir, read_only=True) as saver:
        return jax.device_get(saver.restore(STEPS, template)[0])


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The workdir of the run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    said = launch(folder, workdir)
    assert said.code == 0, said
    (workdir.parent / "said").write_text(said)
    return workdir


def assert_same(workdir, whole, template) -> None:
    """All that is kept is the same: the state to the last bit, numbers, rollouts."""
    assert run_records(workdir) == run_records(whole)
    here, there = state_of(workdir, template), state_of(whole, template)
    jax.tree.map(np.testing.assert_array_equal, here, there)
    # LIM has counted each valid rollout of the unfinished epoch once.
    drawn = [row for row in rollout_dump.read_dump(workdir) if row["step"] in (7, 8)]
    valid = sum(row["valid"] for row in drawn)
    assert here.sampler.cell_count_2N.sum() == valid > 0


@pytest.mark.slow
def test_the_whole_run_learns(whole, template):
    rows = run_records(whole)["metrics"]
    assert len(rows) == STEPS
    assert sum(row["gradient_norm"] > 0 for row in rows) > STEPS / 2
    assert 0 < np.mean([row["invalid_share"] for row in rows]) < 0.5
    # Where there is no terminal: one plain line a step.
    said = (whole.parent / "said").read_text()
    lines = [line for line in said.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == [f"{n}/8" for n in range(1, 9)]
    assert all(f"reward {row['reward']:6.3f}" in x for x, row in zip(lines, rows))
    assert "\r" not in said
    assert_same(whole, whole, template)


@pytest.mark.soak
def test_killed_in_a_generation(folder, whole, template, tmp_path):
    """kill -9 in step 5: step 2 is saved before 4 is, which is under way or done."""
    workdir = tmp_path / "run"
    said = launch(folder, workdir, "generate", 5, "SIGKILL")
    assert said.code == -signal.SIGKILL, said
    assert not (workdir / "result.json").exists()
    said = launch(folder, workdir)
    assert said.code == 0, said
    assert re.search(r"going on after step [24] of 8", said)
    assert_same(workdir, whole, template)


@pytest.mark.slow
def test_stopped_killed_killed_and_killed_again(folder, whole, template, tmp_path):
    """SIGTERM; kill -9 in a generation, in a save, and between metrics and save."""
    workdir = tmp_path / "run"
    said = launch(folder, workdir, "generate", 1, "SIGTERM")
    assert said.code == 0, said
    assert f"the same command goes on: {workdir}" in said
    latest = [0]  # the rollouts of step 1 were dropped
    for moment, count in (
        ("generate", 3),  # in step 3; the save of step 2 is done, or is not
        ("os.rename", 1),  # a checkpoint is whole when it gets its name
        ("limr_jax.storage.checkpoint.Checkpointer.save", 3),  # step 2 is saved by then
    ):
        said = launch(folder, workdir, moment, count, "SIGKILL")
        assert said.code == -signal.SIGKILL, said
        assert f"going on after step {latest[-1]} of {STEPS}" in said
        with checkpoint.Checkpointer(workdir, read_only=True) as saver:
            latest.append(saver.latest())
        assert not (workdir / "result.json").exists()
        if moment == "os.rename":
            assert latest[-1] == latest[-2]
            assert [x for x in os.listdir(workdir / "checkpoints") if "tmp" in x]
    assert latest == sorted(latest) and 2 <= latest[-1] < STEPS
    said = launch(folder, workdir)
    assert said.code == 0, said
    assert f"going on after step {latest[-1]} of {STEPS}" in said
    assert_same(workdir, whole, template)
    result = json.loads(said.out.splitlines()[-1])
    assert result["params_digest"] == run_records(whole)["result"]["params_digest"]


@pytest.mark.slow
def test_what_differs_is_named(folder, whole, tmp_path, monkeypatch):
    """Of the config, the data or the version; more steps alone are welcome.

    The data count by their content: they may lie elsewhere, and then are not named.
    """
    other = write_problems(tmp_path / "train.jsonl", 10)
    other.write_text(other.read_text().replace("9+1=", "9+01="))
    fewer = {"num_steps": STEPS - 1}
    sampler = {"seed": 1, "sampler.lim.floor": 0.5}
    digest = r"content\.data\.train: \"\w{16}\" → \"\w{16}\""
    for changes, fields in (
        (fewer, f"config.num_steps: {STEPS} → {STEPS - 1}"),
        (sampler, "config.sampler.lim.floor: 0.05 → 0.5; config.seed: 0 → 1:"),
        ({"data.train": other}, f"{digest}:"),
    ):
        with pytest.raises(InputError, match=f"differs in {fields}"):
            claim(whole, parts(folder, changes).identity)
    before = (folder / "train.jsonl").read_text()
    (folder / "train.jsonl").write_text(other.read_text())
    with pytest.raises(InputError, match=f"differs in {digest}:"):
        claim(whole, parts(folder).identity)
    (folder / "train.jsonl").write_text(before)
    versions = f'"{limr_jax.__version__}" → "0.0.9"'
    monkeypatch.setattr(limr_jax, "__version__", "0.0.9")
    with pytest.raises(InputError, match=f"differs in version: {versions}:"):
        claim(whole, parts(folder).identity)


@pytest.mark.soak
def test_killed_at_any_change_of_a_file(folder, whole, template, tmp_path):
    """Before 24 random ones of all changes, and within each of 8 generations."""
    said = launch(folder, tmp_path / "counted", "file", 0, "SIGKILL")
    changes = int(re.search(r"file: (\d+)", said)[1])
    choose = random.Random(0)
    moments = [("file", n) for n in sorted(choose.sample(range(1, changes + 1), 24))]
    moments += [("generate", n) for n in range(1, STEPS + 1)]
    for moment in moments:
        workdir = tmp_path / "-".join(map(str, moment))
        said = launch(folder, workdir, *moment, "SIGKILL")
        assert said.code == -signal.SIGKILL, said
        said = launch(folder, workdir)
        assert said.code == 0, said
        assert_same(workdir, whole, template)
    print(f"\n{len(moments)} kills, {changes} changes of files in an unbroken run")


@pytest.mark.soak
def test_killed_at_twenty_random_times(folder, tmp_path, capsys):
    """kill -9 of the process group after a random time, again and again.

    Of start-up, steps and saves. A run that comes to its end before is compared, and
    another one begins; so is the last one.
    """
    begun = time.monotonic()
    unbroken = tmp_path / "unbroken"
    assert launch(folder, unbroken, **LONGER).code == 0
    longest = time.monotonic() - begun
    expected = run_records(unbroken)
    assert len(expected["metrics"]) == LONGER["num_steps"]
    choose, kills, runs, reached = random.Random(20), 0, 0, []
    while kills < 20 or runs == 0:
        workdir, finished = tmp_path / f"run-{runs}", False
        while not finished:
            seconds = choose.uniform(0.1, 1.0) * longest if kills < 20 else None
            said = launch(folder, workdir, seconds=seconds, **LONGER)
            assert said.code in (0, -signal.SIGKILL), said
            assert "Traceback" not in said and "is damaged" not in said, said
            finished = said.code == 0
            kills += not finished
            rows = metrics.read_metrics(workdir) if workdir.exists() else ()
            reached.append(max((row["step"] for row in rows), default=0))
        runs += 1
        assert run_records(workdir) == expected
        left = {path.name for path in workdir.iterdir()} - {".lock"}
        assert left == {path.name for path in unbroken.iterdir()} - {".lock"}
        kept = sorted(path.name for path in workdir.glob("checkpoints/*"))
        assert kept == sorted(path.name for path in unbroken.glob("checkpoints/*"))
    with capsys.disabled():
        print(f"\n{kills} kills, {runs} runs of {longest:.0f} s; steps: {reached}")
