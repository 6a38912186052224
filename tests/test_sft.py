"""Fine-tuning: packing by hand, and a run on a user's JSONL from first to exported."""

import json
import pathlib
import runpy
import shutil

import numpy as np
import pytest
from tiny_run import MODEL, ROOT, short_sighted

from limr_jax import sft
from limr_jax.config import load
from limr_jax.errors import InputError
from limr_jax.models import hf_weights
from limr_jax.storage import checkpoint, metrics
from limr_jax.storage.array_digest import params_digest

pytestmark = pytest.mark.usefixtures("quick_compiler")


def test_pack_by_hand():
    """Texts of 3, 4, 2 and 9 tokens in rows of 6: two rows, one text left out."""
    texts = sft.pack(
        [[1], [2, 3], [4], [5] * 4],
        [[6, 7], [8, 9], [10], [11] * 5],
        columns=6,
        pad_id=0,
    )
    np.testing.assert_array_equal(
        texts.tokens_RW, [[1, 6, 7, 4, 10, 0], [2, 3, 8, 9, 0, 0]]
    )
    np.testing.assert_array_equal(
        texts.position_RW, [[0, 1, 2, 0, 1, -1], [0, 1, 2, 3, -1, -1]]
    )
    np.testing.assert_array_equal(
        texts.segment_RW, [[0, 0, 0, 1, 1, -1], [0, 0, 0, 0, -1, -1]]
    )
    np.testing.assert_array_equal(
        texts.learned_RW, [[0, 1, 1, 0, 1, 0], [0, 0, 1, 1, 0, 0]]
    )
    assert texts.left_out == 1


def test_every_row_once_an_epoch():
    prompts = [[i + 1] for i in range(6)]
    texts = sft.pack(prompts, [[9]] * 6, columns=2, pad_id=0)
    feed = sft.batches(texts, rows=2, seed=0)
    for _ in range(3):
        epoch = [next(feed) for _ in range(3)]
        first = np.concatenate([batch.tokens_RW[:, 0] for batch in epoch])
        assert sorted(first) == [1, 2, 3, 4, 5, 6]
        for batch in epoch:
            np.testing.assert_allclose(batch.weight_RY.sum(), 1, rtol=1e-6)
    with pytest.raises(InputError, match="6 packed rows do not fill a batch of 7"):
        sft.batches(texts, rows=7, seed=0)


ROW = {"id": "1", "problem": "1+1=", "answer": "2"}


def solved(path: pathlib.Path, solution: str = "#### {}") -> pathlib.Path:
    """A file of forty problems with their solutions."""
    rows = [
        ROW | {"id": str(i), "problem": f"{i}+1=", "solution": solution.format(i + 1)}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def configure(texts: pathlib.Path, steps: int, **changes):
    fields = {
        "tokenizer": ROOT / "limr_jax/assets/arithmetic",
        "data.train": texts,
        "num_steps": steps,
        "rows": 2,
        "columns": 24,
        "log_every": 1,
        "checkpoint.every": 2,
        "mesh.data": 1,
        "mesh.fsdp": 2,
        "mesh.tensor": 4,
        "optimizer.learning_rate": 0.01,
        **{f"model.{name}": size for name, size in MODEL.items()},
        "model.heads": 4,
        "model.kv_heads": 4,
    } | changes
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    base = str(ROOT / "configs/sft_base.py")
    return load.load(["--config", base, *overrides])[0]


@pytest.mark.slow
def test_a_users_file_from_first_to_exported(tmp_path):
    """Stopped after 2 of 4 steps and gone on = 4 at once, and the export opens."""
    rows = solved(tmp_path / "solved.jsonl")
    whole = sft.train(configure(rows, 4), str(tmp_path / "whole"))
    sft.train(configure(rows, 2), str(tmp_path / "parts"))
    # The first part's export is of step 2; the longer run replaces it.
    again = sft.train(configure(rows, 4), str(tmp_path / "parts"))
    assert again["params_digest"] == whole["params_digest"]
    for run in (whole, again):
        assert hf_weights.read_config(run["model"]).width == MODEL["width"]
    one, two = (
        pathlib.Path(run["model"], "model.safetensors").read_bytes()
        for run in (whole, again)
    )
    assert one == two


@pytest.mark.slow
def test_what_diverges_is_not_saved(tmp_path, capsys):
    """The first step makes parameters of 1e38, and those after it no number at all."""
    made = configure(
        solved(tmp_path / "solved.jsonl"),
        6,
        **{"optimizer.learning_rate": 1e38, "log_every": 4},
    )
    said = "step 4 has .*=nan.* 3 in a row .* no checkpoint yet, and .*00004.npz holds"
    with pytest.raises(InputError, match=said):
        sft.train(made, str(tmp_path / "run"))
    with checkpoint.Checkpointer(tmp_path / "run", read_only=True) as saved:
        assert saved.latest() is None
    # Of the steps that are not logged those that went wrong have a line as well.
    rows = list(metrics.read_metrics(tmp_path / "run"))
    assert [row["step"] for row in rows] == [2, 3, 4]
    assert capsys.readouterr().err.count("nonfinite_update") == 3
    with np.load(tmp_path / "run/divergence/step_00000002.npz") as batch:
        assert batch["tokens_RW"].shape == batch["position_RW"].shape


def test_texts_longer_than_the_checkpoint_was_trained_for(tmp_path):
    """'39+1=' and '#### 40' have nine tokens with the end token."""
    short = short_sighted(tmp_path / "model", positions=8)
    fields = {"model.init": short} | {f"model.{name}": 0 for name in MODEL}
    rows = solved(tmp_path / "solved.jsonl")
    with pytest.raises(InputError) as caught:
        sft.train(configure(rows, 1, **fields), str(tmp_path / "run"))
    assert str(caught.value) == (
        f"the longest text of {rows} = 9 tokens, but {short} was trained for 8 "
        "(max_position_embeddings); lower that, or allow it with "
        "--config.model.max_length=9"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (ROW, "not every row has a solution"),
        (ROW | {"solution": 5}, "solution of '1' is a JSON number, not text"),
    ],
)
def test_a_row_without_solution_is_refused(tmp_path, row, said):
    rows = tmp_path / "unsolved.jsonl"
    rows.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=said):
        sft.train(configure(rows, 1), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_evaluation_problem_is_refused_unless_overridden(tmp_path):
    row = {"id": "1", "problem": "1+1=", "answer": "2", "solution": "#### 2"}
    for name in ("aime24", "mine"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    given = configure(tmp_path / "mine.jsonl", 1)
    given.data.manual_dir = given.data.cache_dir = str(tmp_path)
    with pytest.raises(InputError, match="1 of 1 .* are in aime24:test .*allow_over"):
        sft.train(given, str(tmp_path / "run"))
    given.data.allow_overlap = True
    with pytest.raises(InputError, match="do not fill a batch"):  # the next check
        sft.train(given, str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"micro_batch_rows": 3}, "micro_batch_rows=3 must divide the 2 packed rows"),
        ({"micro_batch_rows": 4}, "micro_batch_rows=4 must divide the 2 packed rows"),
        ({"rows": 3}, "rows=3 does not divide over data x fsdp = 2 devices"),
        ({"rows": 0}, "rows=0 must be from 1 to"),
        ({"columns": 0}, "columns=0 must be from 1 to"),
        ({"log_every": 0}, "log_every=0 must be from 1 to"),
        ({"num_steps": 0}, "num_steps=0 must be from 1 to"),
        ({"seed": -1}, "seed=-1 must be from 0"),
        ({"checkpoint.every": 0}, "checkpoint.every=0 must be from 1 to"),
        ({"optimizer.clip_norm": -1}, "optimizer.clip_norm=-1.0 must be from 0 to"),
        ({"tokenizer": ""}, "tokenizer is empty"),
        ({"model.base_dtype": "int8"}, "base_dtype=int8 with model.lora.rank=0, which"),
        ({"model.lora.targets": "q,w"}, "model.lora.targets='q,w': 'w' is none"),
        ({"mesh.data": 3}, "8 devices"),
    ],
)
def test_a_wrong_setting_before_anything_is_read(tmp_path, fields, said):
    config = configure(tmp_path / "nowhere.jsonl", 1, **fields)
    with pytest.raises(InputError, match=said):
        sft.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_not_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = configure(tmp_path / "nowhere.jsonl", 1)
    with pytest.raises(InputError, match="--workdir=gs://bucket/run is not on this"):
        sft.train(config, "gs://bucket/run")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def trained(tmp_path, quick_compiler):
    """(file of texts, workdir, result) of one step from an exported model."""
    rows = solved(tmp_path / "solved.jsonl")
    first = sft.train(configure(rows, 1), str(tmp_path / "first"))
    workdir = tmp_path / "second"
    return rows, first["model"], workdir, sft.train(from_model(rows, first), workdir)


def from_model(rows, first):
    dimensions = {f"model.{name}": 0 for name in MODEL}
    return configure(rows, 1, **{"model.init": first["model"]} | dimensions)


@pytest.mark.slow
def test_other_texts_or_another_model_are_another_run(trained):
    rows, init, workdir, result = trained
    config = from_model(rows, {"model": init})
    assert sft.train(config, workdir)["params_digest"] == result["params_digest"]
    solved(rows, "so #### {}")
    with pytest.raises(InputError, match="a run that differs in content.data.train: "):
        sft.train(config, workdir)
    solved(rows)
    weights_file = pathlib.Path(init, "model.safetensors")
    weights_file.write_bytes(weights_file.read_bytes()[:-4] + b"\0\0\0\x3f")
    with pytest.raises(InputError, match="a run that differs in content.model.init: "):
        sft.train(config, workdir)


def contents(folder) -> dict:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path.name != ".lock"}


@pytest.mark.slow
def test_a_model_that_no_run_wrote_is_not_removed(trained, tmp_path, monkeypatch):
    """Before a first start, also where it is model.init; and in a run's own folder."""
    rows, init, workdir, _ = trained
    mine = tmp_path / "mine/model"
    shutil.copytree(init, mine)
    (mine / hf_weights.ABOUT).unlink()
    before = contents(tmp_path)
    with pytest.raises(InputError) as raised:
        sft.train(from_model(rows, {"model": mine}), tmp_path / "mine")
    assert contents(tmp_path) == before
    assert str(raised.value) == (
        f"{tmp_path}/mine holds 'model' but no run.json, so it is no run's folder; "
        "give another --workdir, a new or an empty one"
    )
    # A user's folder in the place of the export, before a run that has grown.
    shutil.rmtree(workdir / "model")
    shutil.copytree(mine, workdir / "model")
    grown = from_model(rows, {"model": init})
    grown.num_steps = 2
    before = contents(tmp_path)
    monkeypatch.setattr(sft, "load_learned", None)
    with pytest.raises(InputError) as raised:
        sft.train(grown, workdir)
    assert str(raised.value) == (
        f"{workdir}/model was not written by this run, whose export would take its "
        "place; move it away, or give another --workdir"
    )
    changed = {path.name for path in before if contents(tmp_path)[path] != before[path]}
    assert changed == {"run.json"}  # of the steps that are wanted


@pytest.mark.slow
def test_a_run_that_grows_and_dies_leaves_no_old_model(tmp_path, monkeypatch):
    """Killed when the last checkpoint is whole, before the export is written."""
    rows, workdir = solved(tmp_path / "solved.jsonl"), tmp_path / "run"
    sft.train(configure(rows, 1), workdir)
    assert (workdir / "model").exists()

    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sft, "params_digest", dies)
        sft.train(configure(rows, 2), workdir)
    assert not (workdir / "model").exists()
    result = sft.train(configure(rows, 2), workdir)
    config = hf_weights.read_config(result["model"])
    mesh = sft.make_mesh(1, 2, 4)
    exported = hf_weights.load_params(result["model"], config, mesh)
    assert params_digest(exported) == result["params_digest"]


def test_a_dry_run_checks_too(tmp_path):
    main = runpy.run_path(str(ROOT / "launch/sft.py"))["main"]
    given = ["--config", str(ROOT / "configs/tiny_sft.py"), "--config.rows=0"]
    with pytest.raises(InputError, match="rows=0"):
        main([*given, f"--workdir={tmp_path / 'run'}", "--dry_run"])
