"""The whole loop, in this process: what it leaves behind, and through interruptions."""

import copy
import dataclasses
import errno
import gc
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import (
    at_step,
    configure,
    run_records,
    set_up,
    stopping,
    with_parity,
    write_problems,
)

from limr_jax import setup
from limr_jax.errors import InputError
from limr_jax.rollout import drafts as drafts_lib
from limr_jax.storage import checkpoint, files, metrics
from limr_jax.storage.metrics import METRICS
from limr_jax.storage.workdir import read_result, write_result
from limr_jax.train import train

STEPS = 7


pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the problems lie: 10 to train on and 5 held out."""
    folder = tmp_path_factory.mktemp("problems")
    write_problems(folder / "train.jsonl", 10)
    write_problems(folder / "eval.jsonl", 5, add=2)
    return folder


# Three steps are an epoch, so LIM weighs from the fourth on.
FIELDS = {
    "sampler__name": "lim",
    "rollout__temperature": 0.7,
    "rollout__top_p": 0.95,
}


@pytest.fixture(scope="module")
def config(folder):
    return configure(folder / "train.jsonl", num_steps=STEPS, **FIELDS)


@pytest.fixture(scope="module")
def made(config):
    """The parts of a run: its programs are compiled once for all tests."""
    return with_parity(set_up(config))


@pytest.fixture(scope="module")
def whole(made, config, tmp_path_factory):
    """The workdir of the run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    train(made, config, workdir)
    return workdir


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_the_policy_learns_and_all_is_told(whole, made):
    seen = run_records(whole)
    assert [row["step"] for row in seen["metrics"]] == list(range(1, STEPS + 1))
    # Without these every test below would compare runs in which nothing happens.
    assert all(row["gradient_norm"] > 0 for row in seen["metrics"])
    assert 0 < np.mean([row["reward"] for row in seen["metrics"]]) < 1
    assert 0 < np.mean([row["invalid_share"] for row in seen["metrics"]]) < 1
    assert seen["metrics"][-1]["epoch"] == pytest.approx(2 + 1 / 3)
    assert seen["result"]["epochs"] == 2
    assert len(seen["rollouts"]) == STEPS * 8
    first = seen["rollouts"][0]
    problems = made.train_set.problems
    assert first["prompt"] == problems.prompts[problems.ids.index(first["id"])]


def test_rollouts_log_probabilities_are_the_learners(whole):
    for row in metrics.read_metrics(whole):
        assert row["drift"] <= row["drift_max"] < 1e-5


def test_the_length_of_each_problems_last_answers_is_kept(whole, made):
    """As the dump has them; so later answers begin in their order."""
    length = {}
    for row in run_records(whole)["rollouts"]:
        length.setdefault(row["id"], {}).setdefault(row["step"], []).append(
            row["length"]
        )
    last = {id: np.mean(by_step[max(by_step)]) for id, by_step in length.items()}
    assert any(len(by_step) > 1 for by_step in length.values())
    with checkpoint.Checkpointer(whole, read_only=True) as saver:
        state, _ = saver.restore(STEPS, made.programs.state)
    want = [last.get(id, 0) for id in made.train_set.problems.ids]
    np.testing.assert_allclose(state.length_N, want, rtol=1e-6)


def test_the_share_drawn_is_by_the_weights_that_drew(whole):
    """An epoch ends with step 3, and weighs anew what had never been seen before."""
    rows = metrics.read_metrics(whole)
    unseen = [row["lim/drawn_unseen_share"] for row in rows]
    assert unseen[:3] == [1, 1, 1] and np.mean(unseen[3:]) < 1


def test_nothing_is_compiled_after_the_first_step(whole):
    """Checkpoints are saved after steps 2, 4 and 6."""
    counts = [row["compile_count"] for row in metrics.read_metrics(whole)]
    assert counts[0] > 0
    assert set(counts) == {counts[0]}


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3, 6, STEPS])
def test_an_error_in_any_step(made, config, whole, tmp_path, step):
    with pytest.raises(KeyboardInterrupt):
        train(stopping(made, step), config, tmp_path)
    assert read_result(tmp_path) is None
    train(made, config, tmp_path)
    assert run_records(tmp_path) == run_records(whole)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 5, STEPS])
def test_sigterm_in_any_step(made, config, whole, tmp_path, step):
    """The rollouts of the step are dropped, and the state that it began with saved."""
    before = signal.getsignal(signal.SIGTERM)
    assert train(at_step(made, step, terminate), config, tmp_path) is None
    assert signal.getsignal(signal.SIGTERM) is before
    with checkpoint.Checkpointer(tmp_path, read_only=True) as saved:
        assert saved.latest() == step - 1
    train(made, config, tmp_path)
    assert run_records(tmp_path) == run_records(whole)


def spoiling(made, steps):
    """The run, with rewards that are no numbers at these steps of a `train` call."""
    spoil = jax.jit(lambda x: x * jnp.nan)
    calls = []

    def grade(written, drawn):
        graded = made.grade(written, drawn)
        calls.append(1)
        if len(calls) not in steps:
            return graded
        return dataclasses.replace(graded, reward_PG=spoil(graded.reward_PG))

    return dataclasses.replace(made, grade=grade)


@pytest.mark.slow
def test_an_update_that_is_no_number_is_left_out(made, config, whole, tmp_path, capsys):
    """At steps 4 and 6, of which checkpoints are due: they are put off to 5 and 7."""
    train(spoiling(made, {4, 6}), config, tmp_path)
    rows, unbroken = (list(metrics.read_metrics(x)) for x in (tmp_path, whole))
    assert [row["nonfinite_share"] for row in rows] == [0, 0, 0, 1, 0, 1, 0]
    assert [row["loss"] is None for row in rows] == [False] * 3 + [True, False] * 2
    # What the policy writes after a step left out is another policy's than else.
    assert rows[2]["loss"] == unbroken[2]["loss"]
    steps = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert steps == {"5", "7"}
    warned = list(metrics.read_metrics(tmp_path, metrics.WARNINGS))
    warned = [x for x in warned if x["name"] == "nonfinite_update"]
    assert [row["step"] for row in warned] == [4, 6]
    assert "loss=nan" in warned[0]["text"] and "(1 in a row" in warned[1]["text"]
    assert f"warning: {warned[0]['text']}" in capsys.readouterr().err
    with np.load(tmp_path / "divergence/step_00000004.npz") as batch:
        assert np.isnan(batch["groups.graded.reward_PG"]).all()
        assert batch["groups.rollout.response_BT"].shape == (8, 6)


@pytest.mark.slow
def test_a_run_that_diverges_ends_and_keeps_its_last_checkpoint(
    made, config, whole, tmp_path
):
    """Three steps in a row have rewards that are no numbers; a stop is between them."""
    said = "step 5 has gradient_norm=nan, loss=nan, 3 in a row .* of step 2 stands"
    spoilt = spoiling(made, {3, 4, 5})
    with pytest.raises(InputError, match=said) as caught:
        train(spoilt, config, tmp_path)
    assert f"{tmp_path}/divergence/step_00000005.npz holds the batch" in str(
        caught.value
    )
    assert [row["loss"] is None for row in metrics.read_metrics(tmp_path)] == (
        [False] * 2 + [True] * 3
    )
    with checkpoint.Checkpointer(tmp_path, read_only=True) as saved:
        assert saved.latest() == 2
    # Taken up, those before the start count as well: SIGTERM saves after step 4.
    again = spoiling(at_step(made, 3, terminate), {1, 2})
    assert train(again, config, tmp_path) is None
    with pytest.raises(InputError, match="step 5 has .* 3 in a row"):
        train(spoiling(made, {1}), config, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints/4")
    train(made, config, tmp_path)
    assert run_records(tmp_path) == run_records(whole)


@pytest.mark.slow
def test_a_run_that_diverges_at_once_says_the_same_again(made, config, tmp_path):
    """Checkpoints are put off, so that none is there: nothing was lost."""
    longer = copy.deepcopy(config)
    with longer.unlocked():
        longer.divergence.patience = 6
    spoilt = set(range(1, STEPS + 1))
    for _ in range(2):
        with pytest.raises(InputError, match="step 6 has .* there is no checkpoint"):
            train(spoiling(made, spoilt), longer, tmp_path)


@pytest.mark.slow
def test_a_policy_that_writes_no_numbers_ends_the_run(folder, tmp_path):
    """A first step of size 1e30: with filter.tau=0 the loss is 0 from then on."""
    wild = configure(
        folder / "train.jsonl",
        num_steps=9,
        filter__tau=0.0,
        optimizer__learning_rate=1e30,
        optimizer__warmup_steps=0,
        optimizer__clip_norm=0.0,
    )
    with pytest.raises(InputError, match="rollout_entropy=nan, 3 in a row"):
        train(with_parity(set_up(wild)), wild, tmp_path)


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_an_interval(made, config, whole, tmp_path, capsys):
    """The run goes on from the one before, and no rollout is counted twice."""
    with pytest.raises(KeyboardInterrupt):
        train(stopping(made, STEPS), config, tmp_path)
    newest = tmp_path / "checkpoints/6"
    largest = max(newest.rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 4
    largest.write_bytes(data)
    capsys.readouterr()
    train(made, config, tmp_path)
    damaged, going_on, *_ = capsys.readouterr().out.splitlines()
    assert damaged.startswith(f"{newest} is damaged: ")
    assert damaged.endswith(" from what was saved; going on without it")
    assert going_on == f"going on after step 4 of {STEPS}"
    assert run_records(tmp_path) == run_records(whole)
    steps = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert steps == ["6", str(STEPS)]


def test_where_no_checkpoint_is_whole_nothing_is_lost(made, config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(stopping(made, 5), config, tmp_path)
    for record in tmp_path.glob("checkpoints/*/meta/metadata"):
        record.unlink()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files if path.name != ".lock"}
    with pytest.raises(InputError, match="none of the checkpoints 2, 4 in .* is whole"):
        train(made, config, tmp_path)
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.slow
def test_logs_that_cannot_be_written_end_nothing(
    made, config, whole, tmp_path, capsys, monkeypatch
):
    """From step 3 to 5 the disk is full, for all but checkpoints."""
    append, steps = files.append, []

    def full(path, data):
        if len(steps) in (3, 4, 5):
            raise OSError(errno.ENOSPC, "No space left on device")
        append(path, data)

    monkeypatch.setattr(files, "append", full)
    counted = dataclasses.replace(
        made, grade=lambda *x: steps.append(1) or made.grade(*x)
    )
    result = train(counted, config, tmp_path)
    said = [x for x in capsys.readouterr().err.splitlines() if "be written" in x]
    assert [x.split(" cannot be")[0] for x in said] == (
        [f"warning: {tmp_path}/{x}" for x in ("rollouts", "tensorboard", METRICS)]
    )
    here, there = run_records(tmp_path), run_records(whole)
    assert here["metrics"] == there["metrics"] and here["result"] == there["result"]
    assert result["epochs"] == 2
    kept = [row for row in there["rollouts"] if row["step"] not in (3, 4, 5)]
    assert here["rollouts"] == kept


def mount(place, *options) -> None:
    """Mount, or mount anew, a disk in memory; skips where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "limr_jax", str(place)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no disk may be mounted here ({made.stderr.strip()})")


@pytest.fixture
def disk(tmp_path):
    """A folder in which a test may mount."""
    place = tmp_path / "disk"
    place.mkdir()
    yield place
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", str(place)], check=True)


# What TensorStore had under way ends when Orbax listens no more.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_is_full_within_a_save(made, config, whole, disk, tmp_path):
    """Not whole, but one line; with more room the run goes on from the one before."""
    files = [path for path in (whole / "checkpoints/6").rglob("*") if path.is_file()]
    one = sum(-(-path.stat().st_size // 4096) * 4096 for path in files)
    # For a checkpoint, half of the next one, and the logs.
    mount(disk, f"size={int(1.5 * one) + 100_000}")
    workdir = disk / "run"
    with pytest.raises(InputError) as raised:
        train(made, config, workdir)
    line = str(raised.value)
    assert line.startswith("a checkpoint could not be written: ") and "\n" not in line
    assert line.endswith("make room or mend it, then give the same command again")
    with checkpoint.Checkpointer(workdir, read_only=True) as saver:
        assert saver.steps() == [2]
    mount(disk, "remount", "size=64m")
    train(made, config, workdir)
    assert run_records(workdir) == run_records(whole)


@pytest.mark.slow
def test_a_disk_that_is_read_only(made, config, disk):
    mount(disk, "size=8m")
    with pytest.raises(KeyboardInterrupt):
        train(stopping(made, 4), config, disk / "run")
    kept = {x: x.read_bytes() for x in disk.rglob("*") if x.is_file()}
    mount(disk, "remount", "ro")
    with pytest.raises(InputError) as raised:
        train(made, config, disk / "run")
    assert str(raised.value) == (
        f"{disk / 'run'} cannot be written (Read-only file system); give a folder of "
        "your own"
    )
    assert kept == {x: x.read_bytes() for x in disk.rglob("*") if x.is_file()}


def wait_for_save(workdir) -> None:
    """Wait until the checkpoint of step 2 is whole, and none is under way."""
    end = time.monotonic() + 60
    while [x.name for x in (workdir / "checkpoints").iterdir()] != ["2"]:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
def test_a_workdir_that_is_removed_under_the_run(made, config, tmp_path, again):
    """It ends at its next line, not its next checkpoint, and puts nothing there.

    again: in its place the same command has begun by then.
    """
    workdir, kept = tmp_path / "run", tmp_path / "kept"

    def remove():
        wait_for_save(workdir)
        workdir.rename(kept)
        if again:
            shutil.copytree(kept, workdir)
            owner = json.loads((workdir / ".lease").read_text())
            changed = owner | {"id": "another", "pid": 1}
            (workdir / ".lease").write_text(json.dumps(changed))

    with pytest.raises(InputError) as raised:
        train(at_step(made, 3, remove), config, workdir)
    said = "has been taken over by process 1" if again else "was removed while this run"
    assert f"{workdir} {said}" in str(raised.value)
    assert workdir.exists() == again
    if again:
        assert [x["step"] for x in metrics.read_metrics(workdir)] == [1, 2]
        assert [x.name for x in (workdir / "checkpoints").iterdir()] == ["2"]
    # Whoever finds it where it was moved goes on there.
    assert train(made, config, kept)["steps"] == STEPS


@pytest.mark.slow
def test_checkpoints_that_are_removed_under_the_run(made, config, whole, tmp_path):
    """The state is in memory: the next ones are saved anew."""

    def remove():
        wait_for_save(tmp_path)
        shutil.rmtree(tmp_path / "checkpoints")

    train(at_step(made, 4, remove), config, tmp_path)
    assert run_records(tmp_path) == run_records(whole)
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert saved == ["6", str(STEPS)]


@pytest.mark.slow
def test_a_finished_run_has_its_last_checkpoint(made, config, tmp_path, monkeypatch):
    """However long the saving takes: a kill between the two would leave a result."""
    rename, write, there = os.rename, write_result, []

    def slowly(source, target, **options):
        time.sleep(0.3 if "checkpoints" in str(target) else 0)
        return rename(source, target, **options)

    def recorded(workdir, result):
        there.append((workdir / "checkpoints" / str(STEPS)).exists())
        write(workdir, result)

    monkeypatch.setattr(os, "rename", slowly)
    monkeypatch.setattr("limr_jax.train.write_result", recorded)
    train(made, config, tmp_path)
    assert there == [True]


def test_a_finished_run_is_told_again(made, config, whole, folder):
    result = read_result(whole)
    assert train(stopping(made, 1), config, whole) == result


@pytest.mark.slow
def test_more_steps_go_on(made, config, whole, tmp_path):
    def run_to(steps):
        fewer = config.copy_and_resolve_references().unlock()
        fewer.num_steps = steps
        identity = made.identity | {"config": fewer.to_dict()}
        return train(dataclasses.replace(made, identity=identity), fewer, tmp_path)

    assert run_to(3)["steps"] == 3
    assert run_to(STEPS)["steps"] == STEPS
    assert run_records(tmp_path) == run_records(whole)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_drafts_change_no_rollout_and_are_resumed(
    folder, tmp_path, recompute, monkeypatch
):
    """Interrupted in each epoch; the last visits' rollouts are in the checkpoints."""
    # Half of these drafts begin right, with which a CPU goes on without.
    monkeypatch.setattr(drafts_lib, "pays_from", lambda: 0.1)
    # One of two words each time, so that a random policy repeats itself.
    fields = {"num_steps": STEPS, "sampler__name": "lim", "rollout__top_k": 2}
    fields |= {"mismatch__recompute": recompute}

    def made(drafts):
        given = configure(folder / "train.jsonl", rollout__drafts=drafts, **fields)
        return with_parity(set_up(given)), given

    train(*made(0), tmp_path / "without")
    run, config = made(3)
    train(run, config, tmp_path / "whole")
    for step in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            train(stopping(run, step), config, tmp_path / "broken")
    train(run, config, tmp_path / "broken")
    assert run_records(tmp_path / "broken") == run_records(tmp_path / "whole")
    without, whole = (run_records(tmp_path / name) for name in ("without", "whole"))
    for here, there in zip(whole["rollouts"], without["rollouts"], strict=True):
        assert (here["id"], here["response"]) == (there["id"], there["response"])
    # By the learner's own log-probabilities: a rollout's are rounded otherwise.
    if recompute:
        digests = (x["result"]["params_digest"] for x in (without, whole))
        assert len({*digests}) == 1
    accepted = [row["drafts/accepted"] for row in whole["metrics"]]
    # Some problems of the third step come again, and all of the fourth's.
    assert min(accepted[2:]) > 0.1 > max(accepted[:2]), accepted


def test_drafts_that_no_step_would_try_are_refused(folder):
    """512 slots on a CPU, and no smaller number of them: products are not free."""
    config = configure(
        folder / "train.jsonl",
        prompts_per_step=8,
        group_size=64,
        rollout__drafts=2,
        rollout__compactions=0,
    )
    with pytest.raises(
        InputError, match="of more than 64 slots .* the last loop has 512"
    ):
        set_up(config)


@pytest.mark.slow
def test_drafts_on_devices_that_do_not_divide_the_table(folder):
    """Three devices: 256 rows of the table lie whole on each."""
    config = configure(folder / "train.jsonl", prompts_per_step=3, rollout__drafts=2)
    table = set_up(config, devices=3).programs.state.drafts
    assert table.shape[0] == 256 and table.sharding.is_fully_replicated
    config = configure(folder / "train.jsonl", prompts_per_step=2, rollout__drafts=2)
    assert not set_up(
        config, devices=2
    ).programs.state.drafts.sharding.is_fully_replicated


def test_an_implicit_transfer_is_an_error(made, config, tmp_path):
    add = jax.jit(lambda x: x + 1)
    add(np.ones(3))

    def grade(written, drawn):
        add(np.ones(3))
        return made.grade(written, drawn)

    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(dataclasses.replace(made, grade=grade), config, tmp_path)


@pytest.mark.slow
def test_without_kl_there_is_no_reference(made, config, tmp_path):
    """In the loop the devices hold parameters and Adam's two moments, once each."""
    assert made.programs.reference is None
    leaves = [x.shape for x in jax.tree.leaves(made.programs.state.train.params)]
    shapes = sorted(set(leaves))

    def count():
        live = [x.shape for x in jax.live_arrays() if not x.is_deleted()]
        return np.array([live.count(shape) for shape in shapes])

    gc.collect()  # an exception of an earlier test holds a run's arrays
    before, within = count(), []
    train(at_step(made, 2, lambda: within.append(count())), config, tmp_path)
    once = np.array([leaves.count(shape) for shape in shapes])
    assert np.array_equal(within[0] - before, 3 * once)


@pytest.mark.slow
def test_a_steps_rollouts_are_gone_when_the_next_ones_come(made, config, tmp_path):
    """The devices hold no more [B, T] in the second step than in the first."""
    shape = (8, 6)

    def held():
        gc.collect()
        return [x.shape for x in jax.live_arrays() if not x.is_deleted()].count(shape)

    within = []
    for step in (1, 2):
        made = at_step(made, step, lambda: within.append(held()))
    train(made, config, tmp_path)
    assert within[0] == within[1] >= 4


def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(
    made, config, whole, tmp_path
):
    """To begin anew would drop what was logged."""
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "result.json").unlink()
    logged = (workdir / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError) as raised:
        train(made, config, workdir)
    assert str(raised.value) == (
        f"{workdir} has logged {STEPS} steps, with a checkpoint every 2, but holds "
        "none: put checkpoints/ back, or give another --workdir to start anew"
    )
    assert (workdir / "metrics.jsonl").read_bytes() == logged


@pytest.fixture(scope="module")
def examined(folder, tmp_path_factory):
    """A run with held-out problems: its parts, its config, its workdir."""
    config = configure(
        folder / "train.jsonl",
        data__eval=folder / "eval.jsonl",
        num_steps=4,
        evaluation__every=2,
        evaluation__samples=2,
        rollout__slots=3,
        **FIELDS,
    )
    made = with_parity(set_up(config))
    workdir = tmp_path_factory.mktemp("examined")
    train(made, config, workdir)
    return made, config, workdir


@pytest.mark.slow
def test_slots_and_evaluations_change_nothing(examined, whole):
    """Three rollouts at once or eight: the same tokens and rewards, all else nearly."""
    here, there = run_records(examined[2]), run_records(whole)
    assert here["rollouts"] == there["rollouts"][: 4 * 8]
    for row, expected in zip(here["metrics"], there["metrics"]):
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            # What slots are there for, and what fewer of them take.
            if name in ("rollout_waste", "decode_steps"):
                continue
            near = None if value is None else pytest.approx(value, rel=1e-4, abs=1e-5)
            assert row[name] == near, name


@pytest.mark.slow
def test_evaluations(examined):
    _, _, workdir = examined
    evals, result = run_records(workdir)["evals"], run_records(workdir)["result"]
    assert [row["step"] for row in evals] == [0, 2, 4]
    assert {"accuracy_level_0", "sampled/accuracy_level_1"} <= evals[0].keys()
    assert result["eval_problems"] == 5
    assert result["eval_accuracy_before"] == evals[0]["accuracy"]
    assert result["eval_accuracy_after"] == evals[2]["accuracy"]
    assert result["pass_at_2_before"] == evals[0]["sampled/pass_at_2"]
    assert 0 < result["pass_at_2_before"] <= 1
    counts = [row["compile_count"] for row in metrics.read_metrics(workdir)]
    assert set(counts) == {counts[0]}


def test_without_a_dump_no_rollouts_are_gathered(made, folder, tmp_path, monkeypatch):
    none = configure(folder / "train.jsonl", num_steps=1, dump__max_bytes=0, **FIELDS)
    monkeypatch.setattr("limr_jax.outputs.rollout_rows", pytest.fail)
    train(made, none, tmp_path / "run")
    assert not run_records(tmp_path / "run")["rollouts"]


@pytest.mark.slow
def test_only_a_new_run_is_graded_as_before_training(examined, tmp_path):
    """Where what the first evaluation said is lost, no later policy takes its place."""
    made, config, workdir = examined
    with pytest.raises(KeyboardInterrupt):
        train(stopping(made, 3), config, tmp_path)
    (tmp_path / metrics.EVALS).unlink()
    result = train(made, config, tmp_path)
    assert [row["step"] for row in run_records(tmp_path)["evals"]] == [2, 4]
    assert result["eval_accuracy_before"] is None
    assert result["eval_accuracy_after"] == run_records(workdir)["evals"][2]["accuracy"]


@pytest.mark.slow
def test_a_stop_before_an_evaluation(examined, tmp_path, capsys):
    made, config, workdir = examined
    assert train(at_step(made, 2, terminate), config, tmp_path) is None
    train(made, config, tmp_path)
    assert run_records(tmp_path) == run_records(workdir)
    # How many responses count as wrong because nobody could grade them, is said.
    evals = run_records(tmp_path)["evals"]
    assert 0 < evals[0]["sampled/ungradable_share"] < 1
    lines = capsys.readouterr().out.splitlines()
    for row in evals:
        shares = [row[x] for x in ("accuracy", "well_formed", "ungradable_share")]
        accuracy, formed, ungradable = (f"{share:.1%}" for share in shares)
        assert (
            f"evaluation after step {row['step']}: accuracy {accuracy} of 5 held-out "
            f"problems, {formed} well formed, {ungradable} ungradable"
        ) in lines


def by_hand(*values):
    """A moment that other tests have in CI."""
    return pytest.param(*values, marks=pytest.mark.soak)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        by_hand("limr_jax.first_state", "restore_or_begin", 1),
        by_hand("limr_jax.evaluation.evaluator.Evaluator", "__call__", 1),
        ("limr_jax.evaluation.evaluator.Evaluator", "__call__", 2),
        by_hand("limr_jax.step", "draw", 2),
        by_hand("limr_jax.step", "generate", 2),
        by_hand("limr_jax.step", "queue_scores", 2),
        by_hand("limr_jax.step", "grade", 2),
        by_hand("limr_jax.step", "observe", 2),
        by_hand("limr_jax.step", "score", 2),
        ("limr_jax.step", "update", 2),
        by_hand("limr_jax.storage.rollout_dump.Dump", "add", 2),
        by_hand("limr_jax.storage.metrics.Metrics", "step", 2),
        ("limr_jax.storage.checkpoint.Checkpointer", "save", 1),
        by_hand("limr_jax.storage.checkpoint.Checkpointer", "save", 2),
        by_hand("limr_jax.evaluation.evaluator.Evaluator", "__call__", 3),
        ("limr_jax.evaluation.evaluator.Evaluator", "__call__", 4),
        by_hand("limr_jax.train", "write_result", 1),
    ],
)
def test_sigterm_in_any_phase(examined, tmp_path, monkeypatch, owner, name, call):
    """As that phase begins: the last update is saved, and the run goes on."""
    made, config, workdir = examined
    place, calls = pkgutil.resolve_name(owner), []
    function = getattr(place, name)

    def struck(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            terminate()
        return function(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, struck)
        ended = train(made, config, tmp_path)
    # Once the last checkpoint is whole nothing is left to stop.
    assert (ended is None) == (name != "write_result")
    assert len(calls) >= call
    train(made, config, tmp_path)
    assert run_records(tmp_path) == run_records(workdir)


def test_without_held_out_problems(whole):
    result = read_result(whole)
    for name in (
        "eval_problems",
        "eval_accuracy_before",
        "eval_accuracy_after",
        "pass_at_0_before",
        "format_valid_before",
    ):
        assert result[name] is None
    assert not run_records(whole)["evals"]


@pytest.mark.slow
def test_kl_in_the_loss(folder, tmp_path):
    """Also after a stop: the reference is the first policy, not the last one saved."""
    config = configure(
        folder / "train.jsonl",
        num_steps=3,
        kl__coefficient=0.1,
        kl__estimator="k3",
        optimizer__learning_rate=0.03,
    )
    made = with_parity(set_up(config))
    train(made, config, tmp_path / "whole")
    first, *later = metrics.read_metrics(tmp_path / "whole")
    assert abs(first["kl"]) < 1e-6
    assert all(row["kl"] > 1e-5 for row in later)
    assert train(at_step(made, 2, terminate), config, tmp_path / "stopped") is None
    train(made, config, tmp_path / "stopped")
    assert run_records(tmp_path / "stopped") == run_records(tmp_path / "whole")


@pytest.mark.slow
def test_word_problems_of_the_users_own(tmp_path):
    """Any text goes through the shipped tokenizer: what it lacks are bytes to it.

    No answer is right, so that KL in the reward is all that the policy learns from.
    """
    rows = [
        {
            "id": f"æ{i}",
            "problem": f"Zoë hat {i} Äpfel für 3 €, isst 2, kauft 四 dazu. ¿Cuántas?",
            "answer": f"{i + 2}",
        }
        for i in range(8)
    ]
    rows[5]["problem"] *= 9
    path = tmp_path / "words.jsonl"
    path.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in rows))
    config = configure(
        path,
        num_steps=2,
        rollout__max_prompt_length=200,
        group_size=4,
        micro_batch_rows=4,
        kl__coefficient=0.1,
        kl__estimator="k1",
        kl__placement="reward",
    )
    made = set_up(config)
    assert len(made.train_set) == 7 and made.train_set.left_out == ("æ5",)
    assert "words.jsonl, prompts too long: 1 (æ5)" in setup.describe(made, config)
    result = train(made, config, tmp_path / "run")
    seen = run_records(tmp_path / "run")
    assert result["steps"] == 2
    first, second = seen["metrics"]
    assert first["reward"] == second["reward"] == 0
    assert abs(first["kl"]) < 1e-6 < 1e-5 < abs(second["kl"])
    assert second["gradient_norm"] > first["gradient_norm"]
    prompts = {row["id"]: row["problem"] for row in rows}
    assert len(seen["rollouts"]) == 2 * 16
    for row in seen["rollouts"]:
        assert row["prompt"] == prompts[row["id"]] and row["id"] != "æ5"
