"""launch/lim.py on recorded curves, published scores and a run's rollout dump."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from limr_jax.errors import InputError
from limr_jax.samplers import score_file
from limr_jax.storage import metrics, rollout_dump
from limr_jax.studies import reward_curves

ROOT = pathlib.Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("launch_lim", ROOT / "launch" / "lim.py")
launch = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(launch)

# The test vector of algorithms.md: r_avg [.3125, .4375, .5625, .6875].
VECTOR = {
    "rises": [0, 0.25, 0.5, 0.75],
    "never": [0, 0, 0, 0],
    "always": [1, 1, 1, 1],
    "soon": [0.25, 0.5, 0.75, 1],
}


def write(path, rows) -> str:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def write_curves(path, named) -> str:
    return write(path, [{"id": name, "rewards": row} for name, row in named.items()])


def read(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def run(*words) -> None:
    launch.main([str(word) for word in words])


def kept(*words, out) -> list[str]:
    run("select", *words, "--out", out)
    return [row["id"] for row in read(out)]


def test_the_published_vector(tmp_path, capsys):
    file, out = write_curves(tmp_path / "c", VECTOR), tmp_path / "scores"
    run("score", "--rewards", file, "--out", out)
    rows = read(out)
    assert [row["id"] for row in rows] == list(VECTOR)
    assert [set(row) for row in rows] == [{"id", "lim_score", "epochs", "filled"}] * 4
    np.testing.assert_allclose(
        [row["lim_score"] for row in rows], [20 / 23, 0, 0, 20 / 23], atol=1e-7
    )
    assert [(row["epochs"], row["filled"]) for row in rows] == [(4, 0)] * 4
    assert "4 of 4 problems have a score over 4 epochs" in capsys.readouterr().out
    chosen = ("--scores", out, "--threshold", 0.6)
    assert kept(*chosen, out=tmp_path / "k") == ["rises", "soon"]
    assert read(tmp_path / "k") == [rows[0], rows[3]]


GAPS = {
    "whole": [0, 0.5, 1],
    "first": [None, 0.5, 1],
    "last": [0, 0.5, None],
    "two": [None, None, 0.5],
    "none": [None, None, None],
}


def test_says_how_many_of_the_kept_were_never_solved(tmp_path, capsys):
    file, out = tmp_path / "curves.jsonl", tmp_path / "scores.jsonl"
    curves = {"a": [0.5, 0.5], "b": [0, 0], "c": [0, 0], "d": [0.25, 0.75]}
    rows = [{"id": name, "rewards": curve} for name, curve in curves.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("score", "--rewards", file, "--out", out)
    # The average is .19 and .31: all four are near it.
    said = "4 of at least 0.6, 2 of which were never solved; 0 cells were missing"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    "missing, epochs, filled",
    [
        # A gap takes the value after it; what still has one is left out, with the
        # epochs that were recorded.
        ("backfill", [3, 3, 2, 1, 0], [0, 1, 0, 0, 0]),
        # A gap takes the value before it; before the first there is none.
        ("carry", [3, 2, 3, 1, 0], [0, 0, 1, 0, 0]),
        ("drop", [3, 2, 2, 1, 0], [0, 0, 0, 0, 0]),
    ],
)
def test_missing_values(tmp_path, missing, epochs, filled):
    file, out = write_curves(tmp_path / "c", GAPS), tmp_path / "s"
    run("score", "--rewards", file, "--missing", missing, "--out", out)
    rows = read(out)
    table = {
        "backfill": [[0, 0.5, 1], [0.5, 0.5, 1]],
        "carry": [[0, 0.5, 1], [None, 0.5, 1], [0, 0.5, 0.5], [None, None, 0.5]],
        "drop": [[0, 0.5, 1]],
    }[missing]
    value_NE = np.array(table, float)
    mean_E = np.nanmean(value_NE, axis=0)
    apart_N = np.nansum((value_NE - mean_E) ** 2, axis=1)
    room_NE = np.where(np.isnan(value_NE), 0, (1 - mean_E) ** 2)
    want = list(1 - apart_N / room_NE.sum(axis=1))
    got = [row["lim_score"] for row in rows]
    np.testing.assert_allclose(got[: len(want)], want, atol=1e-6)
    assert got[len(want) :] == [None] * (len(GAPS) - len(want))
    assert [row["epochs"] for row in rows] == epochs
    assert [row["filled"] for row in rows] == filled


@pytest.mark.slow
def test_limr_1389_of_8523_from_the_released_scores(shared, tmp_path):
    file = shared / "data" / "math_lvl3to5.jsonl"
    out = tmp_path / "kept.jsonl"
    command = [sys.executable, str(ROOT / "launch" / "lim.py"), "select"]
    words = ["--scores", str(file), "--threshold", "0.6", "--out", str(out)]
    done = subprocess.run([*command, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "kept 1389 of 8523 problems, 7936 of them with a score" in done.stdout
    rows = read(file)
    assert read(out) == [row for row in rows if row["in_limr"]]  # whole rows
    assert len(read(out)) == 1389
    # And a mistake is one line, without a traceback.
    words[3] = "2"
    done = subprocess.run([*command, *words], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --threshold 2.0 keeps none of 7936 problems")
    assert len(done.stderr.splitlines()) == 1


def test_the_paper_rounds_before_it_compares(tmp_path):
    rows = [{"id": str(i), "lim_score": s} for i, s in enumerate([0.594, 0.596, 0.6])]
    words = ["--scores", write(tmp_path / "s", rows), "--threshold", 0.6]
    assert kept(*words, out=tmp_path / "k") == ["2"]
    assert kept(*words, "--round", 2, out=tmp_path / "k") == ["1", "2"]


def test_top_and_random_never_keep_a_null(tmp_path):
    scores = [0.5, None, 0.75, 0.5, -3.0, None, 0.5]
    rows = [{"id": str(i), "lim_score": score} for i, score in enumerate(scores)]
    words = ["--scores", write(tmp_path / "s", rows)]
    out = tmp_path / "k"
    assert kept(*words, "--top", 1, out=out) == ["2"]
    assert kept(*words, "--top", 3, out=out) == ["0", "2", "3"]  # ties by order
    assert kept(*words, "--top", 5, out=out) == ["0", "2", "3", "4", "6"]
    assert kept(*words, "--random", 5, out=out) == ["0", "2", "3", "4", "6"]
    drawn = {tuple(kept(*words, "--random", 2, "--seed", s, out=out)) for s in range(9)}
    assert len(drawn) > 3 and all(len(set(ids)) == 2 for ids in drawn)
    assert not {"1", "5"} & {problem for ids in drawn for problem in ids}
    again = [kept(*words, "--random", 2, "--seed", 7, out=out) for _ in range(2)]
    assert again[0] == again[1]
    assert kept(*words, "--threshold", -1e9, out=out) == ["0", "2", "3", "4", "6"]


@pytest.mark.slow
def test_linear_and_std_from_curves(tmp_path):
    rows = VECTOR | {"falls": [1, 0.5, 0.25, 0], "late": [0, 0, 0, 1]}
    file, out = write_curves(tmp_path / "c", rows), tmp_path / "k"
    # The correlation of [0, 0, 0, 1] with the epoch is .7746, of a flat curve 0.
    linear = ["rises", "soon", "late"]
    assert kept("--rewards", file, "--linear", 0.7, out=out) == linear
    assert kept("--scores", file, "--linear", 0.7, out=out) == linear
    assert kept("--rewards", file, "--linear", 0.8, out=out) == ["rises", "soon"]
    assert kept("--rewards", file, "--std", 2, out=out) == ["falls", "late"]
    assert kept("--rewards", file, "--threshold", 0.6, out=out) == ["rises", "soon"]
    assert read(out)[0] == {"id": "rises", "rewards": VECTOR["rises"]}


def dump(workdir, *, epochs=True):
    """Two problems an epoch, two samples each: a rises, b falls, b's last invalid."""
    with_epoch = [
        # step, id, epoch, (correct, reward, valid) of each sample
        (1, "a", 0, [(0, -1, 1), (0, -0.5, 1)]),
        (1, "b", 0, [(1, 1, 1), (1, 1, 1)]),
        (2, "a", 1, [(1, 1, 1), (0, -0.5, 1)]),
        (2, "b", 1, [(1, 1, 1), (0, None, 0)]),
        (3, "b", 2, [(0, None, 0), (0, None, 0)]),
        (3, "a", 2, [(1, 1, 1), (1, 1, 1)]),
    ]
    log = rollout_dump.Dump(workdir)
    for step in (1, 2, 3):
        rows = []
        for at, problem, epoch, samples in with_epoch:
            for g, (correct, reward, valid) in enumerate(samples):
                row = {"id": problem, "sample": g, "reward": reward}
                row |= {"correct": bool(correct), "valid": bool(valid)}
                row |= {"epoch": epoch} if epochs else {}
                rows += [row] if at == step else []
        log.add(step, rows)
    return workdir


@pytest.mark.parametrize("epochs", [True, False])
def test_the_curves_of_a_run(tmp_path, epochs):
    run_dir = dump(tmp_path / "run", epochs=epochs)
    got = reward_curves.read_run(run_dir, value="accuracy")
    assert got.ids == ("a", "b")
    np.testing.assert_array_equal(got.value_NE, [[0, 0.5, 1], [1, 1, 0]])
    np.testing.assert_array_equal(got.seen_NE, [[1, 1, 1], [1, 1, 0]])
    got = reward_curves.read_run(run_dir, value="reward")
    np.testing.assert_array_equal(got.value_NE, [[-0.75, 0.25, 1], [1, 1, 0]])
    out = tmp_path / "scores"
    run("score", "--run", run_dir, "--missing", "carry", "--out", out)
    rows = read(out)
    # r_avg = [.5, .75, 1]: a 1 − (.25 + .0625 + 0) / (.25 + .0625 + 0), b the same.
    np.testing.assert_allclose([row["lim_score"] for row in rows], [0, 0], atol=1e-6)
    assert [(row["epochs"], row["filled"]) for row in rows] == [(3, 0), (3, 1)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": 3}, "a rollout of step 1 has no id"),
        ({"correct": "x"}, "the correct of 'a' at step 1 is no number"),
        ({"correct": [1]}, "the correct of 'a' at step 1 is no number"),
    ],
)
def test_a_dump_that_was_changed_is_one_line(tmp_path, row, said):
    rows = [{"id": "a", "sample": 0, "correct": True, "epoch": "x"} | row]
    rollout_dump.Dump(tmp_path).add(1, rows)
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "epoch": "x", "rollouts": [1]}\n'
    )
    with pytest.raises(InputError) as raised:
        reward_curves.read_run(tmp_path, value="accuracy")
    assert str(raised.value) == (
        f"{tmp_path}: {said}; the dump was changed: take another run's, or make it anew"
    )


def test_rewards_of_which_no_score_is_made(tmp_path):
    rows = [{"id": "a", "sample": 0, "reward": x, "epoch": 0} for x in (2e6, 10**400)]
    for step, row in enumerate(rows, 1):
        rollout_dump.Dump(tmp_path, step=step - 1).add(step, [row])
    line = "the reward of 'a' at step 2 is beyond ±1e+15, of which no score is made"
    with pytest.raises(InputError, match=re.escape(line)):
        reward_curves.read_run(tmp_path, value="reward")


@pytest.mark.parametrize(
    "draws, epochs, cells",
    [
        # In order, three problems two a step: step 2 ends epoch 0 and fills its batch
        # with a, for epoch 1; step 3 has the rest of that and ends it.
        (["ab", "ca", "bc"], [0, 1, 2], {"a": [1, 2], "b": [1, 3], "c": [2, 3]}),
        # One epoch in order, then by weight: a twice in epoch 1, which is one cell.
        (["ab", "ba", "a", "a"], [1, 1, 1, 2], {"a": [1, 3], "b": [1, 2]}),
        # No metrics.jsonl: a visit is an epoch.
        (["ab", "ca", "bc"], None, {"a": [1, 2], "b": [1, 3], "c": [2, 3]}),
    ],
)
def test_epochs_that_the_dump_does_not_say(tmp_path, draws, epochs, cells):
    log = rollout_dump.Dump(tmp_path)
    with metrics.Metrics(tmp_path) as numbers:
        for step, drawn in enumerate(draws, start=1):
            sample = {"reward": step, "correct": True, "valid": True}
            log.add(
                step, [{"id": x, "sample": g} | sample for x in drawn for g in "01"]
            )
            if epochs:
                numbers.step(step, {"epoch": epochs[step - 1]})
    got = reward_curves.read_run(tmp_path, value="reward")
    assert got.seen_NE.all()
    assert dict(zip(got.ids, got.value_NE.tolist(), strict=True)) == cells


def test_kept_problems_of_a_run_become_a_training_set(tmp_path):
    run_dir, out = dump(tmp_path / "run"), tmp_path / "k"
    words = ["--run", run_dir, "--missing", "carry", "--linear", 0.9]
    run("select", *words, "--out", out)
    assert [row["id"] for row in read(out)] == ["a"]
    np.testing.assert_allclose(read(out)[0]["linear_score"], 1)
    problems = [{"id": name, "problem": "1+1=", "answer": "2"} for name in "abc"]
    file = write(tmp_path / "p.jsonl", problems)
    run("select", *words, "--problems", file, "--out", out)
    assert read(out) == problems[:1]
    file = write(tmp_path / "p.jsonl", problems[1:])
    with pytest.raises(InputError, match="lacks 1 of the 1 kept problems, first 'a'"):
        run("select", *words, "--problems", file, "--out", out)


def test_a_dump_that_lost_its_first_epochs(tmp_path):
    log = rollout_dump.Dump(tmp_path)
    for step, epoch in ((7, 3), (8, 4)):
        row = {"id": "a", "reward": step / 8, "correct": True, "valid": True}
        log.add(step, [row | {"epoch": epoch}])
    got = reward_curves.read_run(tmp_path, value="reward")
    np.testing.assert_array_equal(got.value_NE, [[7 / 8, 1]])


@pytest.mark.parametrize(
    "bounds, said",
    [
        ({"max_bytes": 1}, "holds 0 of 2 rollouts of step 1"),  # the oldest went
        ({"rows_per_step": 1}, "holds 1 of 2 rollouts of step 1"),
    ],
)
def test_a_dump_that_lacks_rollouts_of_the_run(tmp_path, bounds, said):
    """Its curves would be torn; nothing is scored."""
    workdir, out = tmp_path / "run", tmp_path / "out"
    log = rollout_dump.Dump(workdir, **bounds)
    with metrics.Metrics(workdir) as numbers:
        for step in (1, 2, 3):
            row = {"id": "a", "reward": 1.0, "correct": True, "valid": True}
            log.add(step, [row | {"sample": g} for g in range(2)])
            numbers.step(step, {"epoch": step, "rollouts": 2})
    with pytest.raises(InputError, match=f"{said}.*run it with dump.rows_per_step=0"):
        run("score", "--run", workdir, "--out", out)
    assert not out.exists()


def test_scores_for_a_run_to_start_from(tmp_path):
    rows = [{"id": 7, "lim_score": 0.5}, {"id": "b", "lim_score": None}]
    file = write(tmp_path / "s", rows)
    score_N, known_N = score_file.scores_of(file, ["c", "7", "b"])
    np.testing.assert_array_equal(score_N, [-np.inf, 0.5, -np.inf])
    np.testing.assert_array_equal(known_N, [False, True, False])
    with pytest.raises(InputError, match="for none of the 2 problems, the first of"):
        score_file.scores_of(file, ["b", "c"])


@pytest.mark.slow
def test_1e5_problems_by_100_epochs(tmp_path):
    rng = np.random.default_rng(0)
    value_NE = rng.integers(0, 9, (100_000, 100)) / 8
    seen_NE = rng.random(value_NE.shape) < 0.9
    ids = tuple(map(str, range(len(value_NE))))
    recorded = reward_curves.Curves(ids, np.where(seen_NE, value_NE, 0), seen_NE)
    start = time.perf_counter()
    scores = reward_curves.score(recorded, missing="carry")
    seconds = time.perf_counter() - start
    assert np.isfinite(scores.score_N).all()
    assert seconds < 10, seconds  # compiling included; the 2 s are lim.py's own test


@pytest.mark.parametrize(
    "rows, reason",
    [
        ([], "holds no row"),
        (['{"id": "a", "rewards": [1]'], r":1: not JSON"),
        (['"a"'], ":1: a JSON string, not an object"),
        ([{"rewards": [1]}], ":1: the field 'id' is missing"),
        ([{"id": "a"}], ":1: the field 'rewards' is missing or no list"),
        ([{"id": "a", "rewards": []}], ":1: the field 'rewards' is missing or no"),
        ([{"id": "a", "rewards": ["x"]}], "\"x\" in 'rewards' is no finite number"),
        ([{"id": "a", "rewards": [True]}], "true in 'rewards' is no finite number"),
        (['{"id": "a", "rewards": [NaN]}'], "NaN in 'rewards' is no finite number"),
        (['{"id": "a", "rewards": [1e999]}'], "Infinity in 'rewards'"),
        ([{"id": "a", "rewards": [10**400]}], "in 'rewards' is no finite number"),
        (
            [{"id": "a", "rewards": [1]}, {"id": "b", "rewards": [1, 0]}],
            ":2: 2 epochs, where the first row has 1; write null",
        ),
        (
            [{"id": "a", "rewards": [1]}, {"id": "a", "rewards": [0]}],
            r":2: the id 'a' is also that of .*:1; give every problem its own",
        ),
        ([{"id": "a", "rewards": [None]}], "all values of all 1 problems are missing"),
        (
            [{"id": "a", "rewards": [1, None]}, {"id": "b", "rewards": [0, None]}],
            "each of 2 problems misses an epoch.*--missing carry",
        ),
    ],
)
def test_a_file_of_curves_that_is_wrong(tmp_path, rows, reason):
    file, out = tmp_path / "c", tmp_path / "out"
    write(file, rows)
    with pytest.raises(InputError, match=reason) as caught:
        run("score", "--rewards", file, "--out", out)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert not out.exists()


# Four responses of a base model to each problem; None: nobody could grade it.
RESPONSES = {
    "easy": [True, True, True, True],
    "half": [True, False, False, True],
    "hard": [False, False, False, True],
    "never": [False, False, False, False],
    "vague": [None, None, None, None],
    "gap": [None, False, None, False],
}


def evaluated(folder, *names, **first):
    """What launch/evaluate.py leaves of a finished evaluation of these benchmarks.

    first: fields of the very first response that are to be other ones.
    """
    for name in names:
        dump = rollout_dump.Dump(folder / name)
        for done, (problem, responses) in enumerate(RESPONSES.items(), start=1):
            rows = [
                {"id": problem, "sample": k, "correct": bool(x), "valid": x is not None}
                for k, x in enumerate(responses)
            ]
            if done == 1:
                rows[0] |= first
            dump.add(done, rows)
    sizes = {"problems": len(RESPONSES), "k": 4}
    result = {"benchmarks": dict.fromkeys(names, sizes)}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_the_hardest_of_a_base_model_need_no_run(tmp_path):
    folder = evaluated(tmp_path / "evaluation", "train")
    out, words = tmp_path / "kept", ["--evaluation", folder]
    # Never and gap fail every time: the first of equals; what has no grade never comes.
    assert kept(*words, "--hardest", 3, out=out) == ["hard", "never", "gap"]
    assert {row["id"]: row["hardest"] for row in read(out)} == {
        "never": 1,
        "gap": 1,
        "hard": 0.75,
    }
    assert kept(*words, "--hardest", 1, out=out) == ["never"]
    assert kept(*words, "--std", 1, out=out) == ["half"]
    assert read(out) == [{"id": "half", "std": 0.5}]
    with pytest.raises(InputError, match="6 problems cannot be kept of 5 that have"):
        run("select", *words, "--hardest", 6, "--out", out)
    # As a training set, in the file's order.
    problems = [{"id": x, "problem": "1+1=", "answer": "2"} for x in RESPONSES]
    file = write(tmp_path / "p.jsonl", problems)
    words += ["--hardest", 2, "--problems", file]
    assert kept(*words, out=out) == ["never", "gap"]
    assert read(out) == [problems[3], problems[5]]


def test_evaluations_that_say_too_little(tmp_path):
    folder, out = evaluated(tmp_path / "two", "math", "train"), tmp_path / "out"

    def refused(*words):
        with pytest.raises(InputError) as caught:
            run("select", *words, "--out", out)
        assert not out.exists()
        return str(caught.value)

    hardest = ["--hardest", 2]
    assert refused("--evaluation", folder, *hardest) == (
        f"{folder}: holds the responses to 2 benchmarks; give the folder of one of "
        "them: math, train"
    )
    assert kept("--evaluation", folder / "math", *hardest, out=out)
    out.unlink()
    (folder / "result.json").unlink()
    assert refused("--evaluation", folder / "math", *hardest) == (
        f"{folder}: is no finished evaluation, for it has no result.json; give "
        "launch/evaluate.py's command again"
    )
    assert refused("--evaluation", tmp_path, *hardest) == (
        f"{tmp_path}: holds the responses to 0 benchmarks; give what "
        "launch/evaluate.py wrote with --out"
    )
    assert refused("--evaluation", tmp_path / "nobody", *hardest) == (
        f"{tmp_path}/nobody: no such folder; check the path"
    )
    assert "gs://bucket/base: an evaluation lies on the disk of the host" in refused(
        "--evaluation", "gs://bucket/base", *hardest
    )
    folder = evaluated(tmp_path / "renamed", "train")
    (folder / "train").rename(folder / "other")
    assert "tells of no benchmark 'other'" in refused("--evaluation", folder, *hardest)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"id": None}, "response 0 to None is not as launch/evaluate.py writes it"),
        ({"correct": "yes"}, "response 0 to 'easy' is not as launch/evaluate.py"),
        ({"correct": 7}, "(correct: 7); remove that folder and give"),
        # Of whole problems that are gone the others say nothing.
        (None, "holds 20 responses to 5 problems, and not 4 to each of 6, as result"),
    ],
)
def test_a_damaged_evaluation(tmp_path, damage, said):
    folder, out = evaluated(tmp_path / "e", "train", **(damage or {})), tmp_path / "o"
    if damage is None:
        (segment,) = (folder / "train/rollouts").iterdir()
        segment.write_bytes(segment.read_bytes()[:-1])
    with pytest.raises(InputError) as caught:
        run("select", "--evaluation", folder, "--hardest", 2, "--out", out)
    assert said in str(caught.value) and not out.exists()


def test_an_evaluation_from_within_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(evaluated(tmp_path / "e", "train") / "train")
    assert kept("--evaluation", ".", "--hardest", 1, out=tmp_path / "o") == ["never"]


def test_two_problems_of_one_id(tmp_path):
    folder = evaluated(tmp_path / "e", "train")
    file = write(tmp_path / "p", [{"id": x} for x in [*RESPONSES, "never"]])
    words = ["--evaluation", folder, "--hardest", 1, "--problems", file]
    with pytest.raises(InputError, match="p:7: the id 'never' is also that of .*p:4"):
        run("select", *words, "--out", tmp_path / "o")


SCORED = [{"id": "a", "lim_score": 0.5}, {"id": "b", "lim_score": None}]


@pytest.mark.parametrize(
    "words, reason",
    [
        (
            ["score", "--run", "nowhere", "--out", "o"],
            "nowhere: holds no rollouts (rollouts/*.jsonl.gz); give the workdir of a "
            "run that dumped them",
        ),
        (
            ["score", "--rewards", "gone", "--out", "o"],
            "gone: no such file; check the path",
        ),
        (
            ["score", "--rewards", "s", "--out", "s"],
            "--out s is what is read; give another file",
        ),
        (
            ["score", "--rewards", "s", "--out", "no/o"],
            "--out no/o: no such folder; make it first",
        ),
        (
            ["select", "--scores", "s", "--top", "2"],
            "--top 2: 2 problems cannot be kept of 1 that have a score; give a number "
            "from 1 to 1",
        ),
        (
            ["select", "--scores", "s", "--random", "0"],
            "--random 0: 0 problems cannot be kept of 1 that have a score; give a "
            "number from 1 to 1",
        ),
        (
            ["select", "--scores", "s", "--random", "1", "--seed", "-1"],
            "--seed -1 must be 0 or more",
        ),
        (
            ["select", "--scores", "s", "--threshold", "nan"],
            "--threshold nan is no finite number; give one",
        ),
        (
            ["select", "--scores", "s", "--threshold", "0.6"],
            "--threshold 0.6 keeps none of 1 problems, whose largest score is 0.5; "
            "give less",
        ),
        (
            ["select", "--scores", "s", "--threshold", "0.5", "--round", "400"],
            "--round 400 must be from 0 to 15 digits",
        ),
        (
            ["select", "--scores", "s", "--std", "1"],
            "s:1: the field 'rewards' is missing or no list; give a number, or null, "
            "for each epoch",
        ),
        (
            ["select", "--scores", "c", "--top", "1"],
            "c:1: the field 'lim_score' is missing; python launch/lim.py score makes "
            "it",
        ),
        (
            ["score", "--rewards", "c", "--value", "reward"],
            "--value reward does nothing without --run; leave it out",
        ),
        (
            ["select", "--scores", "s", "--top", "1", "--missing", "carry"],
            "--missing carry does nothing with --scores, which are of whole curves; "
            "leave it out",
        ),
        (
            ["select", "--scores", "s", "--top", "1", "--seed", "0"],
            "--seed 0 does nothing without --random; leave it out",
        ),
        (
            ["select", "--rewards", "c", "--std", "1", "--value", "reward"],
            "--value reward does nothing without --run; leave it out",
        ),
        (
            ["select", "--scores", "s", "--random", "1", "--round", "2"],
            "--round 2 does nothing with --random; leave it out",
        ),
        (
            ["select", "--rewards", "c", "--hardest", "1"],
            "--hardest 1 is of a base model's responses; give --evaluation DIR, which "
            "launch/evaluate.py wrote",
        ),
        (
            ["select", "--evaluation", "e", "--top", "1"],
            "--evaluation e has no epochs, which --top asks for; give --std or "
            "--hardest",
        ),
        (
            ["select", "--evaluation", "e", "--std", "1", "--missing", "carry"],
            "--missing carry does nothing with --evaluation, which has no epochs; "
            "leave it out",
        ),
        (
            ["score", "--rewards", "c", "--from", "verl"],
            "--from verl does nothing without --run; leave it out",
        ),
        (
            ["score", "--run", "r", "--right_at", "0"],
            "--right_at 0.0 does nothing without --from verl, trl, prime-rl, openrlhf; "
            "leave it out",
        ),
        (
            ["replay", "--run", "r", "--reward", "acc"],
            "--reward acc does nothing without --from verl, trl, prime-rl, openrlhf; "
            "leave it out",
        ),
        (
            [
                "score",
                "--from",
                "verl",
                "--run",
                "r",
                "--value",
                "reward",
                "--right_at",
                "0",
            ],
            "--right_at 0.0 does nothing with --value reward, which is the reward as "
            "it is; leave it out",
        ),
        (
            ["score", "--from", "verl", "--run", "r", "--right_at", "nan"],
            "--right_at nan is no finite number; give one",
        ),
        (
            ["score", "--from", "trl", "--run", ".", "--out", "o"],
            "--out o lies in the dump .; give another file",
        ),
        (
            ["select", "--from", "openrlhf", "--run", "c", "--top", "1"],
            "c:1: the field 'step' is missing or no whole number from 0; give the step "
            "that the rollout is of, or which visit of its problem",
        ),
        (
            ["replay", "--scores", "s", "--group", "4"],
            "--group 4 does nothing with --scores, which are of whole curves; leave it "
            "out",
        ),
        (
            ["replay", "--rewards", "c", "--group", "1"],
            "--group 1 must be 2 or more: fewer rollouts of a problem never differ",
        ),
        (
            ["replay", "--rewards", "c", "--seed", "-1"],
            "--seed -1 must be 0 or more",
        ),
        (
            ["replay", "--rewards", "c"],
            "--problems_per_step 32 must be from 1 to the 4 problems that have a curve",
        ),
        (
            ["replay", "--scores", "c", "s", "--out", "s"],
            "--out s is what is read; give another file",
        ),
        (
            ["replay", "--scores", "s", "--size", "2"],
            "s: 2 problems cannot be kept of 1 that have a score; give a number from 1 "
            "to 1",
        ),
        (
            ["score", "--rewards", "c", "--out", "gs://b/o"],
            "--out=gs://b/o is not on this machine; give a local path",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    tmp_path, monkeypatch, words, reason
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "s", SCORED)
    write_curves(tmp_path / "c", VECTOR)
    words = words if "--out" in words else [*words, "--out", "o"]
    with pytest.raises(InputError) as caught:
        run(*words)
    assert str(caught.value) == reason
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "s"]


@pytest.mark.parametrize(
    "words, reason",
    [
        (["score"], "one of the arguments --run --rewards is required"),
        (["replay"], "one of the arguments --run --rewards --scores is required"),
        (["score", "--run", "r", "--from", "nanorl"], "invalid choice: 'nanorl'"),
        (["score", "--rewards", "s", "--missing", "no"], "invalid choice: 'no'"),
        (
            ["select", "--scores", "s"],
            "--threshold --top --random --linear --std --hardest is",
        ),
        (["select", "--scores", "s", "--top", "1", "--std", "1"], "not allowed with"),
        (["select", "--scores", "s", "--threshold", "x"], "invalid float value: 'x'"),
    ],
)
def test_what_argparse_refuses_is_one_line(tmp_path, monkeypatch, words, reason):
    """Its own words differ from one Python to the next."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        run(*words, "--out", "o")
    line = str(caught.value)
    assert reason in line and "\n" not in line
    assert line.endswith(f"; launch/lim.py {words[0]} --help says more")


def test_another_frameworks_dump(tmp_path):
    folder, out = tmp_path / "rollout_data", tmp_path / "scores"
    folder.mkdir()
    for step, scores in ((1, (-1.0, -1.0)), (2, (1.0, -1.0))):
        rows = [{"input": "a", "score": x} for x in scores]
        rows += [{"input": "b", "score": 0.5}]
        write(folder / f"{step}.jsonl", rows)
    run("score", "--from", "verl", "--run", folder, "--out", out)
    # Curves a [0, .5] and b [0, 0]: 1 − .0625 / (1 + .5625) for both.
    np.testing.assert_allclose([row["lim_score"] for row in read(out)], [0.96] * 2)
    words = ["--from", "verl", "--run", folder, "--right_at", 0.5]
    assert kept(*words, "--std", 1, out=out) == ["a"]
    words = ["--from", "verl", "--run", folder, "--value", "reward", "--top", 1]
    # Means a [−1, 0] and b [.5, .5]: the room is that of both, and a is as far off.
    assert kept(*words, out=out) == ["a"]


def test_a_replay(tmp_path, capsys, monkeypatch):
    # Each sampler is a program for the compiler; tests/studies/test_replay.py has more.
    monkeypatch.setattr(launch.replay, "samplers", lambda section: ["uniform"])
    out = tmp_path / "replay.json"
    words = ["--problems_per_step", 2, "--group", 2, "--size", 2, "--out", out]
    run("replay", "--rewards", write_curves(tmp_path / "c", VECTOR), *words)
    shown = capsys.readouterr().out
    (result,) = read(out)
    # 2p(1 − p): rises and soon have [0, 3/8, 1/2, 3/8] and [3/8, 1/2, 3/8, 0].
    assert result["selectors"]["uniform"]["signal_groups_by_epoch"] == (
        [0.375, 0.875, 0.875, 0.375]
    )
    assert result["oracle_signal_groups"] == 5
    assert result["selectors"]["LIM set"]["chosen"] == ["rises", "soon"]
    assert result["selectors"]["LIM set"]["regret"] == 0
    assert "uniform                 2.5    0.31      2.5   100.0%" in shown
    assert f"written to {out}" in shown
    files = [write(tmp_path / x, SCORED) for x in ("s", "t")]
    run("replay", "--scores", *files, "--size", 1, "--out", out)
    (result,) = read(out)
    assert result["overlap"][files[0]][files[1]] == 1
    assert list(result["chosen"].values()) == [["a"]] * 3


@pytest.mark.soak
def test_a_replay_takes_seconds(tmp_path):
    """1,024 problems by 21 epochs, all selectors, as a command; on two idle cores."""
    rate_NE = np.random.default_rng(0).integers(0, 9, (1024, 21)) / 8
    file = write_curves(
        tmp_path / "c", {str(i): x for i, x in enumerate(rate_NE.tolist())}
    )
    command = [sys.executable, str(ROOT / "launch" / "lim.py"), "replay"]
    words = ["--rewards", file, "--out", str(tmp_path / "o")]
    start = time.perf_counter()
    done = subprocess.run([*command, *words], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    (result,) = read(tmp_path / "o")
    assert len(result["selectors"]) == 14 and result["steps"] == 672
    assert seconds < 30, seconds


def test_a_dump_without_correct_says_which_value_it_has(tmp_path):
    rollout_dump.Dump(tmp_path).add(1, [{"id": "a", "sample": 0, "reward": 1.0}])
    with pytest.raises(InputError, match="no 'correct'; give --value reward"):
        reward_curves.read_run(tmp_path, value="accuracy")
    assert reward_curves.read_run(tmp_path, value="reward").value_NE.tolist() == [[1]]
