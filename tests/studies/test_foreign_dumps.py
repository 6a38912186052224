"""Dumps of verl, TRL, prime-rl and OpenRLHF, as these write them, become curves."""

import gzip
import json
import sys

import numpy as np
import pytest

from limr_jax.errors import InputError
from limr_jax.studies import foreign_dumps


def write(path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def curves(path, framework, **options) -> dict[str, list]:
    """id → its value in each epoch; None: missing."""
    got = foreign_dumps.read(path, framework=framework, **options)
    value_NE = np.where(got.seen_NE, got.value_NE, np.nan)
    rows = [[None if np.isnan(x) else x for x in row] for row in value_NE.tolist()]
    return dict(zip(got.ids, rows, strict=True))


def refused(path, framework, **options) -> str:
    with pytest.raises(InputError) as caught:
        foreign_dumps.read(path, framework=framework, **options)
    return str(caught.value)


def verl_rows(step, prompt, *scores, **more):
    row = {"input": f"user\n{prompt}\nassistant\n", "output": "…", "gts": "4"}
    return [row | {"score": x, "step": step, "acc": x > 0} | more for x in scores]


def test_verl(tmp_path):
    a, b = "user\n2+2\nassistant\n", "user\n3+3\nassistant\n"
    write(tmp_path / "9.jsonl", verl_rows(9, "2+2", -1.0, 1.0))
    # b is not in step 9, so that step 10 is its first visit, and a's second.
    rows = verl_rows(10, "3+3", 0.6, -1.0) + verl_rows(10, "2+2", 1.0, 0.9999999)
    write(tmp_path / "10.jsonl", rows)
    write(tmp_path / "notes.jsonl", ["no step of it"])
    assert curves(tmp_path, "verl") == {a: [0.5, 1.0], b: [0.0, None]}
    assert curves(tmp_path, "verl", right_at=0.5) == {a: [0.5, 1.0], b: [0.5, None]}
    # An overlong penalty makes .6 of 1: `acc` is correctness itself.
    assert curves(tmp_path, "verl", reward="acc")[b] == [0.5, None]
    assert curves(tmp_path, "verl", right_at=None)[b] == [pytest.approx(-0.2), None]


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("2.jsonl.gz", {}, "2.jsonl.gz: is gzip; unpack the folder's files"),
        ("01.jsonl", {}, "01.jsonl and 1.jsonl are both of step 1; keep one of them"),
        ("3.jsonl", {"step": 2}, "3.jsonl:1: is of step 2, in the file of step 3;"),
    ],
)
def test_verl_files_that_are_not_all(tmp_path, name, row, reason):
    write(tmp_path / "1.jsonl", verl_rows(1, "2+2", 1.0))
    write(tmp_path / name, [x | row for x in verl_rows(1, "2+2", 1.0)])
    assert reason in refused(tmp_path, "verl")


def test_packed_lines_are_named_as_such(tmp_path):
    file = tmp_path / "rollouts.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"step": 1, "prompt": "p", "reward": 1}\n'))
    assert refused(file, "openrlhf") == f"{file}:1: is gzip; unpack the file (gunzip)"


def test_rewards_that_never_reach_what_is_right(tmp_path):
    file = tmp_path / "rollouts.jsonl"
    rows = [{"step": 1, "prompt": "p", "reward": x} for x in (0.9, 0.5, None)]
    write(file, rows)
    assert refused(file, "openrlhf") == (
        f"{file}: the largest of 2 rewards is 0.9, and from --right_at=1 on a rollout "
        "is right; give --right_at"
    )
    assert curves(file, "openrlhf", right_at=0.9) == {"p": [0.5]}
    assert "has no reward 'step'" in refused(file, "openrlhf", reward="step")


def test_a_duplicate_prompt_is_one_problem(tmp_path):
    write(tmp_path / "1.jsonl", verl_rows(1, "2+2", 1.0) + verl_rows(1, "2+2", 0.0))
    assert list(curves(tmp_path, "verl").values()) == [[0.5]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"input": "a", "score": 1', "{file}:2: not JSON"),
        ({"input": "a"}, "{file}:2: has no reward 'score'; its numbers are none: name"),
        (
            {"input": "a", "score": "1"},
            "{file}:2: \"1\" in 'score' is no finite number",
        ),
        ('{"input": "a", "score": NaN}', "{file}:2: NaN in 'score' is no finite"),
        ({"score": 1.0}, "{file}:2: the field 'input' is missing; add it"),
    ],
)
def test_a_line_that_is_wrong(tmp_path, row, reason):
    file = tmp_path / "1.jsonl"
    write(file, [{"input": "a", "score": 1.0}, row])
    assert refused(tmp_path, "verl").startswith(reason.format(file=file))


def test_a_reward_that_is_not_there(tmp_path):
    write(tmp_path / "1.jsonl", verl_rows(1, "2+2", 1.0))
    assert refused(tmp_path, "verl", reward="accuracy") == (
        f"{tmp_path}/1.jsonl:1: has no reward 'accuracy'; its numbers are score, "
        "acc: name one with --reward"
    )


def write_parquet(path, rows) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow: extra [parquet]")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def trl_rows(step, texts, **rewards):
    """Rows of log_completions: texts are (prompt, completion)."""
    return [
        {"step": step, "prompt": prompt, "completion": completion, "advantage": 0.1}
        | {name: values[i] for name, values in rewards.items()}
        for i, (prompt, completion) in enumerate(texts)
    ]


def test_trl(tmp_path):
    folder = tmp_path / "completions"
    first = [("p", "a"), ("p", "b"), ("q", "c"), ("q", "d")]
    rows = trl_rows(1, first, accuracy_reward=[1.0, 0.0, None, None])
    write_parquet(folder / "completions_00001.parquet", rows)
    # The same generation, logged again by the second step that learns from it.
    rows = trl_rows(2, first, accuracy_reward=[1.0, 0.0, None, None])
    write_parquet(folder / "completions_00002.parquet", rows)
    again = [("q", "c"), ("q", "e"), ("p", "f"), ("p", "g")]
    rows = trl_rows(10, again, accuracy_reward=[1.0, float("nan"), 1.0, 1.0])
    write_parquet(folder / "completions_00010.parquet", rows)
    # q's first visit was not graded: it was one, and is missing.
    want = {"p": [0.5, 1.0], "q": [None, 1.0]}
    assert curves(tmp_path, "trl") == curves(folder, "trl") == want


def test_trl_with_several_rewards(tmp_path):
    rows = trl_rows(1, [("p", "a"), ("p", "b")], right=[1.0, 0.0], format=[1.0, 1.0])
    file = tmp_path / "completions_00001.parquet"
    write_parquet(file, rows)
    assert refused(tmp_path, "trl") == (
        f"{file}: 2 columns of numbers may be the reward (right, format); name one "
        "with --reward"
    )
    assert curves(tmp_path, "trl", reward="right") == {"p": [0.5]}


def test_trl_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    file = tmp_path / "completions_00001.parquet"
    file.touch()
    assert refused(tmp_path, "trl") == (
        f"{file}: Parquet needs the package pyarrow; run pip install pyarrow"
    )


def episode(key, group, *traces, **more):
    """An episode as verifiers' Episode.to_record has it, its texts left out."""
    task = {"type": "MathTask", "data": {"idx": 3, "prompt": "2+2"}, "key": key}
    row = {"id": "e", "env": {"id": "math"}, "task": task, "ok": True, "errors": []}
    row |= {
        "group": {"id": group},
        "traces": [trace | {"task": task} for trace in traces],
    }
    return row | more


def trace(ok=True, trainable=True, **rewards):
    agent = {"name": "solver", "trainable": trainable}
    scores = {name: {"score": x, "weight": w} for name, (x, w) in rewards.items()}
    return {"agent": agent, "rewards": scores, "metrics": {}, "ok": ok, "nodes": []}


def test_prime_rl(tmp_path):
    rollouts = tmp_path / "run" / "rollouts"
    right = trace(right=(1.0, 0.7), form=(1.0, 0.3))
    wrong = trace(right=(0.0, 0.7), form=(1.0, 0.3))
    judge = trace(trainable=False, verdict=(1.0, 1.0))
    write(
        rollouts / "step_2/train/all/traces.jsonl",
        [
            episode("k1", "g1", right, judge),
            episode("k2", "g2", right),
            episode("k2", "g2", trace(ok=False, right=(0.0, 0.7))),  # no grade
        ],
    )
    # What was trained on alone says less, and is not read.
    write(
        rollouts / "step_2/train/effective/traces.jsonl", [episode("k9", "g9", wrong)]
    )
    write(rollouts / "step_2/eval/all/traces.jsonl", [episode("k8", "g8", right)])
    write(
        rollouts / "step_10/train/all/traces.jsonl",
        [
            episode("k1", "g1", wrong),  # of the group of step 2: the same visit
            episode("k1", "g3", wrong),
            episode("k3", "g4", ok=False),  # it failed before any trace
        ],
    )
    want = {"k1": [0.5, 0.0], "k2": [1.0, None], "k3": [None, None]}
    assert curves(tmp_path / "run", "prime-rl") == curves(rollouts, "prime-rl") == want
    form = curves(rollouts, "prime-rl", reward="form")
    assert form == {"k1": [1.0, 1.0], "k2": [1.0, None], "k3": [None, None]}
    file = rollouts / "step_2/train/all/traces.jsonl"
    assert refused(rollouts, "prime-rl", reward="style") == (
        f"{file}:1: no reward 'style' but right, form; give --reward one of them"
    )


def test_prime_rl_before_july_2026(tmp_path):
    rows = [
        {"example_id": 7, "reward": 1.0, "error": None, "prompt": []},
        {"example_id": 7, "reward": 0.0, "error": {"error": "Timeout"}},
    ]
    write(tmp_path / "rollouts/step_1/train_rollouts.jsonl", rows)
    assert curves(tmp_path, "prime-rl") == {"7": [1.0]}
    # A group's number may stand there, and null where there is none.
    more = [
        {"example_id": 7, "reward": float(step > 2), "group_id": group}
        for step, group in ((2, None), (3, 2), (3, 5))
    ]
    for step in (2, 3):
        file = tmp_path / f"rollouts/step_{step}/train_rollouts.jsonl"
        write(file, more[:1] if step == 2 else more[1:])
    assert curves(tmp_path, "prime-rl") == {"7": [1.0, 0.0, 1.0, 1.0]}
    write(file, [more[1] | {"group_id": [1]}])
    assert refused(tmp_path, "prime-rl").startswith(f"{file}:1: the group's id [1] is")
    file.unlink()
    (tmp_path / "rollouts/step_2/train_rollouts.jsonl").unlink()
    # And in July a line was a trace, whose task was known by its prompt.
    messages = [{"role": "user", "content": "2+2"}]
    line = {"task": {"idx": 0, "prompt": messages}, "group_id": "g"}
    line |= {"rewards": {"right": 1.0}, "errors": []}
    write(tmp_path / "rollouts/step_2/train/all/traces.jsonl", [line])
    assert curves(tmp_path, "prime-rl") == {
        "7": [1.0],
        '[{"content": "2+2", "role": "user"}]': [1.0],
    }


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"traces": []}, "the field 'task' is missing or no object"),
        ({"task": {"key": "k"}, "traces": [1]}, "the field 'traces' is no list"),
        (
            {"task": {"key": "k"}, "traces": [{"rewards": [1]}]},
            "the field 'rewards' is missing or no object",
        ),
        (
            {"task": {"key": "k"}, "traces": [trace(right=("x", 1.0))]},
            "\"x\" in 'right' is no finite number",
        ),
    ],
)
def test_an_episode_that_is_wrong(tmp_path, row, reason):
    file = tmp_path / "step_1/train/all/traces.jsonl"
    write(file, [row])
    assert refused(tmp_path, "prime-rl").startswith(f"{file}:1: {reason}")


def test_openrlhf(tmp_path):
    file = tmp_path / "rollouts.jsonl"
    rows = [
        {"step": 2, "prompt": "p", "reward": 1},
        {"step": 1, "prompt": "p", "reward": 0},  # of another engine's process
        {"step": 1, "prompt": "p", "id": "q", "reward": None},
        {"step": 1, "prompt": "p", "id": "q", "reward": 1.0},
    ]
    write(file, rows)
    assert curves(file, "openrlhf") == {"p": [0.0, 1.0], "q": [1.0, None]}
    assert refused(tmp_path, "openrlhf") == (
        f"{tmp_path}: OpenRLHF writes no rollouts to a disk; have its reward function "
        'write a JSONL file with a line a rollout, {"step": 1, "prompt": "…", '
        '"reward": 1.0}, and give that file'
    )
    write(file, [{"step": "1", "prompt": "p", "reward": 0}])
    assert refused(file, "openrlhf") == (
        f"{file}:1: the field 'step' is missing or no whole number from 0; give the "
        "step that the rollout is of, or which visit of its problem"
    )


@pytest.mark.parametrize(
    ("framework", "reason"),
    [
        (
            "verl",
            "holds no STEP.jsonl; give the folder that verl's "
            "trainer.rollout_data_dir named",
        ),
        (
            "trl",
            "holds no completions_STEP.parquet; give the output_dir of a TRL run with "
            "log_completions=True and logging_steps=1",
        ),
        (
            "prime-rl",
            "holds no rollouts/step_STEP/train/all/traces.jsonl; give the run "
            "directory of a prime-rl run with its file monitor on",
        ),
    ],
)
def test_a_folder_without_a_dump(tmp_path, framework, reason):
    gone = tmp_path / "gone"
    assert refused(tmp_path, framework) == f"{tmp_path}: {reason}"
    said = f"{gone}: no such file or folder; check --run"
    assert refused(gone, framework) == said


def test_a_dump_without_rollouts_or_elsewhere(tmp_path):
    (tmp_path / "1.jsonl").write_text("\n")
    assert refused(tmp_path, "verl") == (
        f"{tmp_path}: holds no rollout; give a dump of at least one step"
    )
    assert refused("gs://bucket/run", "verl") == (
        "--run=gs://bucket/run is not on this machine; give a local path"
    )
