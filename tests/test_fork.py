"""A run that goes on from another's checkpoint with something changed."""

import dataclasses
import json
import runpy
import shutil

import jax
import numpy as np
import pytest
from tiny_run import (
    ROOT,
    configure,
    one_device,
    run_records,
    set_up,
    with_parity,
    write_problems,
)

from limr_jax import fork, setup
from limr_jax.errors import InputError
from limr_jax.storage import checkpoint, metrics
from limr_jax.storage.workdir import read_result, read_run
from limr_jax.train import train

pytestmark = pytest.mark.usefixtures("quick_compiler")

FIELDS = {
    "sampler__name": "lim",
    "kl__coefficient": 0.1,
    "checkpoint__keep": 3,
    "evaluation__every": 2,
}


def of(folder, **changed):
    return configure(folder / "train.jsonl", **(FIELDS | changed))


def go_on(left, step, config, workdir):
    """The result of a fork, and what `train` was given."""
    forked = fork.read(str(left), step)
    made = with_parity(set_up(config))
    forked.check(made.programs.state, config=config, identity=made.identity)
    made = dataclasses.replace(made, identity=forked.identity_of(made.identity))
    return train(made, config, workdir, None, forked)


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """The run that is left: six steps, with checkpoints of 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("left")
    write_problems(folder / "train.jsonl", 8)
    config = of(folder)
    train(with_parity(set_up(config)), config, folder / "run")
    return folder / "run"


def params_of(workdir, step, name="train/params/embedder/embedding"):
    with checkpoint.Checkpointer(workdir, read_only=True) as saver:
        place = checkpoint.checkpoint_record.shapes(saver.record(step))[name]
        return np.asarray(saver.restore(step, {name: place}, partial=True)[0][name])


def test_nothing_changed_is_the_same_run(left, tmp_path, capsys):
    result = go_on(left, 4, of(left.parent), tmp_path / "new")
    assert result["params_digest"] == read_result(left)["params_digest"]
    said = capsys.readouterr().out
    assert f"going on from {left} after step 4; changed: nothing\n" in said
    new, old = run_records(tmp_path / "new"), run_records(left)
    assert new["metrics"] == old["metrics"][4:]
    assert new["rollouts"] == [row for row in old["rollouts"] if row["step"] > 4]
    assert read_run(tmp_path / "new")["fork"] == {"workdir": str(left), "step": 4}


def test_its_own_checkpoint_then_goes_on(left, tmp_path, capsys):
    config = of(left.parent, num_steps=5)
    go_on(left, 2, config, tmp_path / "new")
    # Whatever has become of the checkpoint that it began from.
    known = read_run(tmp_path / "new")
    for step in (None, 2):
        identity_of = fork.begun(str(tmp_path / "new"), str(left), step)
        assert identity_of(read_run(left))["content"] == known["content"]
    assert fork.begun(str(tmp_path / "new"), str(left), 4) is None
    assert fork.begun(str(left), str(left), None) is None
    config = of(left.parent, num_steps=6)
    assert (
        go_on(left, 2, config, tmp_path / "new")["params_digest"]
        == read_result(left)["params_digest"]
    )
    assert "going on after step 5 of 6" in capsys.readouterr().out
    # Of another checkpoint it would be another run, and so it would without --fork.
    with pytest.raises(InputError, match="fork"):
        go_on(left, 4, config, tmp_path / "new")
    with pytest.raises(InputError, match="fork"):
        train(with_parity(set_up(config)), config, tmp_path / "new")


@pytest.mark.slow
def test_another_sampler_begins_anew_and_what_is_learned_goes_on(
    left, tmp_path, capsys
):
    config = of(left.parent, sampler__name="mopps", checkpoint__every=1)
    result = go_on(left, 4, config, tmp_path / "new")
    said = capsys.readouterr().out
    assert 'changed: checkpoint.every: 2 → 1; sampler.name: "lim" → "mopps"' in said
    assert "; begins anew: length_N, sampler\n" in said
    assert result["params_digest"] != read_result(left)["params_digest"]
    assert [row["step"] for row in metrics.read_metrics(tmp_path / "new")] == [5, 6]
    # Adam has counted all updates.
    for workdir, step in ((left, 6), (tmp_path / "new", 6)):
        with checkpoint.Checkpointer(workdir, read_only=True) as saver:
            names = [x for x in saver.record(step)["arrays"] if x.endswith("count")]
        assert names
        assert {int(params_of(workdir, step, x)) for x in names} == {6}


@pytest.mark.slow
def test_another_coefficient_counts_from_the_fork_on(left, tmp_path):
    config = of(left.parent, kl__coefficient=0.5)
    go_on(left, 4, config, tmp_path / "new")
    rows = list(metrics.read_metrics(tmp_path / "new"))
    assert [row["kl_coefficient"] for row in rows] == [0.5, 0.5]
    # The policy that writes step 5 is that of the run it left.
    assert (
        rows[0]["response_length"] == run_records(left)["metrics"][4]["response_length"]
    )


@pytest.mark.slow
def test_other_problems_are_drawn_anew(left, tmp_path, capsys):
    write_problems(tmp_path / "train.jsonl", 8, add=3)
    go_on(left, 6, of(tmp_path, num_steps=7), tmp_path / "new")
    assert "begins anew: length_N, sampler\n" in capsys.readouterr().out


def test_another_model_is_refused(left, tmp_path):
    with pytest.raises(InputError, match=r"run, step 6, does not fit: train.* shape"):
        go_on(left, 6, of(left.parent, num_steps=7, model__width=32), tmp_path / "new")
    ppo = {"algorithm": "ppo", "critic__learning_rate": 0.1, "kl__placement": "reward"}
    with pytest.raises(InputError, match="does not fit: it lacks critic/"):
        go_on(left, 6, of(left.parent, num_steps=7, **ppo), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"seed": 1}, "with another seed: 0 → 1: of model.init=random"),
        ({"model__lora__alpha": 16.0}, "alpha: 32.0 → 16.0: what it has learned"),
        ({"model__architecture": "qwen3"}, '"qwen2" → "qwen3": what it has learned'),
    ],
)
def test_what_would_be_another_policy_is_refused(fields, line, left):
    forked = fork.read(str(left), 4)
    with pytest.raises(InputError) as caught:
        forked.check(None, config=of(left.parent, **fields), identity=read_run(left))
    assert line in str(caught.value)


def test_what_lies_at_a_path_counts(left):
    forked, identity = fork.read(str(left), 4), read_run(left)
    config = of(left.parent, data__train=left.parent / "moved.jsonl")
    assert fork.changes(forked, config, identity) == {}
    identity["content"]["model.init"] = "another"
    line = "model.init: what lies there"
    assert fork.changes(forked, config, identity) == {"model.init": line}


def test_a_sampler_of_other_numbers_begins_anew(left):
    config = of(left.parent, sampler__lim__floor=0.2)
    made = set_up(config)
    state, _, anew = fork.first_state(
        fork.read(str(left), 4),
        made.programs.state,
        config=config,
        identity=made.identity,
        make=lambda: made.programs.init(made.load_params()),
    )
    assert anew == ["length_N", "sampler"] and int(state.step) == 4


def test_a_damaged_checkpoint_leaves_no_workdir(left, tmp_path):
    shutil.copytree(left, tmp_path / "run")
    for file in (tmp_path / "run/checkpoints/4/state").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(InputError, match="damaged: .*; give --step with one of 2, 6"):
        go_on(tmp_path / "run", 4, of(left.parent), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_fine_tuning_is_not_forked(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"config": {}}))
    with checkpoint.Checkpointer(tmp_path) as saver:
        saver.save(1, {"step": jax.numpy.int32(1)}, {})
    with pytest.raises(InputError, match="is no run of launch/tpu.py; .*export"):
        fork.read(str(tmp_path), None)


def test_a_checkpoint_that_is_not_there(left, tmp_path):
    with pytest.raises(InputError, match="--step=3: .* it has 2, 4, 6 "):
        fork.read(str(left), 3)
    with pytest.raises(InputError, match="does not exist; give the workdir of a run"):
        fork.read(str(tmp_path / "none"), None)
    assert fork.read(str(left), None).step == 6
    (tmp_path / "run.json").write_text(json.dumps({"config": {}}))
    with pytest.raises(InputError, match="has no checkpoint"):
        fork.read(str(tmp_path), None)


MAIN = runpy.run_path(str(ROOT / "launch/tpu.py"))["main"]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--step=2"], "--step=2 is of a fork; give --fork=RUN too"),
        (["--config=configs/tiny.py"], "give one of --config=path/to/file.py and --"),
        (["--fork=RUN"], "--fork needs a --workdir of its own; give --workdir=NEW"),
        (["--fork=RUN", "--workdir=RUN"], "is the run that is left; give a new one"),
        (["--fork=RUN", "--workdir=NEW", "--step=-2"], "--step=-2 must be a checkp"),
        (["--fork=RUN", "--workdir=NEW", "--step=3"], "has no such checkpoint; it has"),
        (["--fork=RUN", "--workdir=NEW"], "num_steps=6 is not above step 6, from whic"),
        (["--fork=NONE", "--workdir=NEW"], "run.json does not exist; give the workdir"),
        (
            ["--fork=RUN", "--workdir=NEW", "--config.num_step=9"],
            "the nearest is num_steps",
        ),
    ],
)
def test_a_wrong_line_is_one_line(flags, line, left, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    places = {"RUN": left, "NEW": tmp_path / "new", "NONE": tmp_path / "none"}
    if flags == ["--config=configs/tiny.py"]:
        flags = [*flags, "--fork=RUN"]
    if "--step=2" in flags:
        flags = [*flags, "--config=configs/tiny.py"]
    for name, path in places.items():
        flags = [flag.replace(f"={name}", f"={path}") for flag in flags]
    with pytest.raises(InputError) as caught:
        MAIN(flags)
    assert line in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_the_command(left, tmp_path, monkeypatch, capsys):
    """RUN's config is taken, with what the line changes."""
    monkeypatch.chdir(ROOT)
    with one_device(setup):
        MAIN(
            [
                *(f"--fork={left}", "--step=4", f"--workdir={tmp_path / 'new'}"),
                *("--config.num_steps=5", "--config.sampler.name=uniform"),
            ]
        )
    said = capsys.readouterr().out
    assert 'num_steps: 6 → 5; sampler.name: "lim" → "uniform"; begins anew' in said
    result = json.loads(said.splitlines()[-1])
    assert result["steps"] == 5 and read_result(tmp_path / "new")["steps"] == 5
