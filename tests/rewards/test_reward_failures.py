"""A user's reward function that fails, hangs or exits: one line, and nothing lost."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from tiny_run import ROOT, arguments, configure, run_records, set_up, write_problems

from limr_jax import worker_pool
from limr_jax.errors import InputError
from limr_jax.rewards import host, host_grader
from limr_jax.rewards.host import GradingFailed
from limr_jax.storage import checkpoint
from limr_jax.train import train

STEPS = 4
USERS = '''
"""Rewards by chance; `deeds` has what happens at a call instead, by its number."""

import os
import sys
import time

calls, deeds = [], {}


def chance(prompts, completions, *, level, **columns):
    calls.append(1)
    if len(calls) in deeds:
        deed = deeds.pop(len(calls))
        sums = deed(completions)
        if sums is not None:
            return sums
    return [sum(map(ord, c)) % 4 / 3 for c in completions]


def leaves(prompts, completions, **columns):
    sys.exit()


def hangs(prompts, completions, **columns):
    print("it hangs", flush=True)
    time.sleep(600)


def needs_more(prompts, completions, *, difficulty):
    return [0.0 for _ in completions]
'''


pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Problems, and a user's module beside them."""
    folder = tmp_path_factory.mktemp("failing")
    write_problems(folder / "train.jsonl", 8)
    write_problems(folder / "eval.jsonl", 3, add=2)
    (folder / "failing_rewards.py").write_text(USERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    sys.modules.pop("failing_rewards", None)


@pytest.fixture(scope="module")
def config(folder):
    return configure(
        folder / "train.jsonl",
        num_steps=STEPS,
        data__eval=folder / "eval.jsonl",
        reward="failing_rewards.chance",
        checkpoint__every=STEPS,
    )


@pytest.fixture(scope="module")
def made(config):
    """The parts of a run: its programs are compiled once for all tests."""
    return set_up(config)


@pytest.fixture(scope="module")
def whole(made, config, tmp_path_factory):
    """What the run leaves behind that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    train(made, config, workdir)
    return run_records(workdir)


@pytest.fixture
def deeds(folder, whole):
    """By the number of a call from now on; the first one is an evaluation's."""
    module = sys.modules["failing_rewards"]
    module.calls.clear()
    yield module.deeds
    module.deeds.clear()


def latest(workdir) -> int | None:
    with checkpoint.Checkpointer(workdir, read_only=True) as saver:
        return saver.latest()


def exits(completions):
    sys.exit()


def divides(completions):
    return [1 / 0]


LINE = divides.__code__.co_firstlineno + 1
NONE = "; give None for what it cannot grade"
AGAIN = "is saved: mend it, then give the same command again"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deed", "complaint"),
    [
        (divides, rf"raised ZeroDivisionError: .*\(line {LINE} of {__file__}\){NONE}"),
        (exits, rf"raised SystemExit \(line \d+ of {__file__}\){NONE}"),
        (
            lambda c: [float("inf")] * 8,
            r"gave inf \(float\) for completions\[0\], to the prompt '\d\+1='; give a "
            "finite number, or None where it cannot grade",
        ),
        (
            lambda c: [0.0],
            "gave 1 values for 8 completions; give a list of 8, with None where it "
            "cannot grade",
        ),
    ],
)
def test_the_step_before_is_saved_and_the_run_goes_on(
    made, config, whole, deeds, tmp_path, deed, complaint
):
    """The checkpoint that is due is after step 4 alone; step 3 fails."""
    closed = []
    made = dataclasses.replace(made, close=lambda: closed.append(1))
    deeds[4] = deed
    line = f"reward function failing_rewards.chance {complaint}; the state after step 2"
    with pytest.raises(GradingFailed, match=f"^{line} {AGAIN}$"):
        train(made, config, tmp_path)
    assert closed == [1]
    assert latest(tmp_path) == 2
    train(made, config, tmp_path)
    assert closed == [1, 1]
    assert run_records(tmp_path) == whole


@pytest.mark.slow
def test_in_an_evaluation(made, config, whole, deeds, tmp_path):
    deeds[1] = divides
    with pytest.raises(GradingFailed, match=f"; the state after step 0 {AGAIN}$"):
        train(made, config, tmp_path)
    deeds[6 + 1] = divides  # four steps, and the evaluation after them
    with pytest.raises(GradingFailed, match=f"; the state after step 4 {AGAIN}$"):
        train(made, config, tmp_path)
    train(made, config, tmp_path)
    assert run_records(tmp_path) == whole


@pytest.mark.slow
def test_a_state_that_cannot_be_saved_is_on_the_same_line(
    made, config, deeds, tmp_path, monkeypatch
):
    def full(self, *args, **named):
        raise InputError("a checkpoint could not be written: the disk is full")

    deeds[3] = divides
    monkeypatch.setattr(checkpoint.Checkpointer, "save", full)
    with pytest.raises(GradingFailed) as raised:
        train(made, config, tmp_path)
    end = f"{NONE}; a checkpoint could not be written: the disk is full"
    assert str(raised.value).endswith(end)


@pytest.mark.slow
def test_sigterm_while_a_function_hangs(
    made, config, whole, deeds, tmp_path, monkeypatch, capfd
):
    over = threading.Event()
    monkeypatch.setattr(host_grader, "SAY_SECONDS", (0.25,))

    def hang(completions):
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        over.wait(600)

    deeds[3] = hang
    start = time.monotonic()
    assert train(made, config, tmp_path) is None
    assert time.monotonic() - start < 60
    over.set()
    line = "reward=failing_rewards.chance has graded for 0.25 s, and goes on"
    assert line in capfd.readouterr().err.splitlines()
    assert latest(tmp_path) == 1
    train(made, config, tmp_path)
    assert run_records(tmp_path) == whole


@pytest.mark.slow
def test_a_function_that_changes_the_folder_moves_nothing(
    made, config, whole, deeds, tmp_path, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    deeds[1] = lambda completions: os.chdir(tmp_path / "elsewhere")
    train(made, config, "run")
    assert run_records(tmp_path / "run") == whole
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_signature_is_looked_at_before_anything_is_compiled(folder):
    """Of the held-out problems' columns, too."""
    given = {"data__eval": folder / "eval.jsonl", "num_steps": 1}
    given["reward"] = "failing_rewards.needs_more"
    with pytest.raises(InputError, match=r"needs_more\(.*cannot be called .*train.js"):
        set_up(configure(folder / "train.jsonl", **given))
    rows = (folder / "train.jsonl").read_text()
    other = folder / "other.jsonl"
    other.write_text(rows.replace('"level"', '"steps"').replace("+1=", "+3="))
    given |= {"data__eval": other, "reward": "failing_rewards.chance"}
    with pytest.raises(InputError, match=r"of .*other.jsonl \(answer, steps\) by name"):
        set_up(configure(folder / "train.jsonl", **given))


def test_the_graders_of_a_run_are_ended(folder):
    made = set_up(configure(folder / "train.jsonl", reward="math"))
    pool = made.grade._reward.pool
    pool.map([{"references": ["x"], "answers": ["y"]}])
    (process,) = [worker.process for worker in pool._workers if worker.process]
    made.close()
    assert process.poll() is not None
    assert not any(worker.process for worker in pool._workers)


@pytest.mark.slow
def test_a_grader_that_cannot_start(folder, tmp_path, monkeypatch):
    """The state is saved, and the line says what to do."""
    monkeypatch.setattr(worker_pool, "_PAUSES", ())
    monkeypatch.setattr(worker_pool._Worker, "_try", lambda *_: ("no luck", False))
    config = configure(folder / "train.jsonl", num_steps=1, reward="math")
    made = set_up(config)
    monkeypatch.setattr(made.tokenizer.vocabulary, "decode", lambda ids: r"\boxed{x}")
    line = (
        "a grading process (-m limr_jax.rewards.math.worker 5.0 1024) ended 1 times "
        "while it started: no luck; free processors or memory, or give fewer workers; "
        f"the state after step 0 {AGAIN}"
    )
    with pytest.raises(GradingFailed) as raised:
        train(made, config, tmp_path)
    assert str(raised.value) == line
    assert latest(tmp_path) == 0


@pytest.mark.slow
def test_a_grader_of_ours_that_raises(
    made, config, deeds, tmp_path, monkeypatch, capfd
):
    """What nobody has foreseen is a traceback, too; and nothing is lost."""

    def broken(self, *batch, **more):
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(host.HostReward, "__call__", broken)
    with pytest.raises(GradingFailed) as raised:
        train(made, config, tmp_path)
    assert str(raised.value) == (
        "grading failed by RuntimeError, a fault of limr_jax: please report the lines "
        f"above; the state after step 0 {AGAIN}"
    )
    assert "RuntimeError: unforeseen" in capfd.readouterr().err
    assert latest(tmp_path) == 0


def launch(folder, workdir, reward) -> subprocess.Popen:
    fields = {"data.train": folder / "train.jsonl", "num_steps": 1, "reward": reward}
    fields |= {"model.layers": 1}
    script = [sys.executable, str(ROOT / "launch/tpu.py"), *arguments(fields)]
    quick = {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        # What one compiled, the next one loads.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return subprocess.Popen(
        [*script, "--workdir", str(workdir)],
        cwd=folder,
        env=os.environ | quick,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_function_that_exits_is_an_error(folder, tmp_path):
    process = launch(folder, tmp_path / "run", "failing_rewards.leaves")
    _, complaint = process.communicate(timeout=300)
    assert process.returncode == 2
    line = USERS.splitlines().index("    sys.exit()") + 1
    assert complaint == (
        f"error: reward function failing_rewards.leaves raised SystemExit (line {line} "
        f"of {folder / 'failing_rewards.py'}){NONE}; the state after step 0 {AGAIN}\n"
    )
    assert latest(tmp_path / "run") == 0


@pytest.mark.slow
def test_ctrl_c_once_while_a_function_hangs(folder, tmp_path):
    process = launch(folder, tmp_path / "run", "failing_rewards.hangs")
    try:
        while "it hangs" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert complaint == "error: interrupted\n"
