"""Fine-tuning: packing by hand, and a run on a user's JSONL from first to exported."""

import json
import pathlib

import numpy as np
import pytest
from tiny_run import MODEL, ROOT

from limr_jax import checkpoint, config, sft, weights
from limr_jax.errors import InputError


def test_pack_by_hand():
    """Texts of 3, 4, 2 and 9 tokens in rows of 6: two rows, one text left out."""
    texts = sft.pack(
        [[1], [2, 3], [4], [5] * 4],
        [[6, 7], [8, 9], [10], [11] * 5],
        columns=6,
        pad_id=0,
    )
    np.testing.assert_array_equal(
        texts.tokens_RS, [[1, 6, 7, 4, 10, 0], [2, 3, 8, 9, 0, 0]]
    )
    np.testing.assert_array_equal(
        texts.position_RS, [[0, 1, 2, 0, 1, -1], [0, 1, 2, 3, -1, -1]]
    )
    np.testing.assert_array_equal(
        texts.segment_RS, [[0, 0, 0, 1, 1, -1], [0, 0, 0, 0, -1, -1]]
    )
    np.testing.assert_array_equal(
        texts.learned_RS, [[0, 1, 1, 0, 1, 0], [0, 0, 1, 1, 0, 0]]
    )
    assert texts.left_out == 1


def test_every_row_once_an_epoch():
    prompts = [[i + 1] for i in range(6)]
    texts = sft.pack(prompts, [[9]] * 6, columns=2, pad_id=0)
    feed = sft.batches(texts, rows=2, seed=0)
    for _ in range(3):
        epoch = [next(feed) for _ in range(3)]
        first = np.concatenate([batch.tokens_BS[:, 0] for batch in epoch])
        assert sorted(first) == [1, 2, 3, 4, 5, 6]
        for batch in epoch:
            np.testing.assert_allclose(batch.weight_BT.sum(), 1, rtol=1e-6)
    with pytest.raises(InputError, match="6 packed rows do not fill a batch of 7"):
        sft.batches(texts, rows=7, seed=0)


def solved(path: pathlib.Path) -> pathlib.Path:
    """A file of forty problems with their solutions."""
    lines = [
        {"id": str(i), "problem": f"{i}+1=", "answer": "x", "solution": f"#### {i + 1}"}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def configure(rows: pathlib.Path, steps: int, learning_rate: float = 0.01):
    fields = {
        "tokenizer": ROOT / "limr_jax/assets/arithmetic",
        "data.train": rows,
        "num_steps": steps,
        "rows": 2,
        "columns": 24,
        "log_every": 1,
        "checkpoint.every": 2,
        "mesh.data": 1,
        "mesh.fsdp": 2,
        "mesh.tensor": 4,
        "optimizer.learning_rate": learning_rate,
        **{f"model.{name}": size for name, size in MODEL.items()},
        "model.heads": 4,
        "model.kv_heads": 4,
    }
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    base = str(ROOT / "configs/sft_base.py")
    return config.load(["--config", base, *overrides])[0]


def test_a_users_file_from_first_to_exported(tmp_path):
    """Stopped after 2 of 4 steps and gone on = 4 at once, and the export opens."""
    rows = solved(tmp_path / "solved.jsonl")
    whole = sft.train(configure(rows, 4), str(tmp_path / "whole"))
    sft.train(configure(rows, 2), str(tmp_path / "parts"))
    # The first part's export is of step 2; the longer run replaces it.
    again = sft.train(configure(rows, 4), str(tmp_path / "parts"))
    assert again["params_digest"] == whole["params_digest"]
    for run in (whole, again):
        assert weights.read_config(run["model"]).width == MODEL["width"]
    one, two = (
        pathlib.Path(run["model"], "model.safetensors").read_bytes()
        for run in (whole, again)
    )
    assert one == two


def test_what_diverges_is_not_saved(tmp_path):
    """The first step makes parameters of 1e38, and the second no number at all."""
    made = configure(solved(tmp_path / "solved.jsonl"), 4, learning_rate=1e38)
    with pytest.raises(InputError, match="step 2 has .*=nan.* no checkpoint yet"):
        sft.train(made, str(tmp_path / "run"))
    with checkpoint.Checkpointer(tmp_path / "run", read_only=True) as saved:
        assert saved.latest() is None


def test_a_row_without_solution_is_refused(tmp_path):
    rows = tmp_path / "unsolved.jsonl"
    rows.write_text(json.dumps({"id": "1", "problem": "1+1=", "answer": "2"}) + "\n")
    with pytest.raises(InputError, match="not every row has a solution"):
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
