"""launch/evaluate.py: its statistics by hand, what it keeps, what it refuses."""

import dataclasses
import importlib.util
import itertools
import json
import sys
import zlib

import jax
import numpy as np
import pytest
import tiny_run
from tiny_policy import random_params
from tiny_run import ROOT, write_problems

from limr_jax import benchmark, checkpoint, evaluate, examine, metrics
from limr_jax import config as config_lib
from limr_jax.benchmark import Benchmark
from limr_jax.errors import InputError
from limr_jax.policy import read_model_config
from limr_jax.randomness import stream_key
from limr_jax.text import load_tokenizer


def test_benchmarks_by_name():
    made = benchmark.parse(
        "math500, aime24@4 ,amc23:test[:20]@4@0.6,arithmetic[:8]@1@0.5,x.jsonl[2:]@2",
        k=1,
        temperature=-1.0,
    )
    assert made == [
        Benchmark("math500:test", 1, 0.0),
        Benchmark("aime24:test", 4, 0.4),
        Benchmark("amc23:test[:20]", 4, 0.6),
        Benchmark("arithmetic:eval[:8]", 1, 0.5),
        Benchmark("x.jsonl[2:]", 2, 0.4),
    ]
    assert made[2].label == "amc23:test[:20]@4"
    # --k and --temperature are for those that do not say.
    made = benchmark.parse("aime24@1,amc23,math500@2", k=8, temperature=0.7)
    assert [(x.k, x.temperature) for x in made] == [(1, 0.7), (8, 0.7), (2, 0.7)]


@pytest.mark.parametrize(
    "names, problem",
    [
        ("", "no benchmark is named"),
        ("aime24@four", "'aime24@four': after the @ stand a whole number"),
        ("aime24@4@hot", "after the @ stand"),
        ("aime24@4@0.4@1", "after the @ stand"),
        ("aime24@0", "k=0 must be at least 1"),
        ("aime24@4@0", "greedy, its 4 responses are the same"),
        ("aime24@4@nan", "temperature nan is no number"),
        ("aime24@4,aime24:test@4@0.6", "aime24:test@4 is named twice"),
    ],
)
def test_benchmarks_that_make_no_sense(names, problem):
    with pytest.raises(InputError, match=problem):
        benchmark.parse(names, k=1, temperature=-1.0)


def test_a_flag_that_no_benchmark_would_read_is_refused():
    with pytest.raises(InputError, match="k=8 is for benchmarks that do not say"):
        benchmark.parse("aime24@4,amc23@4", k=8, temperature=-1.0)
    with pytest.raises(InputError, match="temperature=0.3 is for benchmarks that"):
        benchmark.parse("aime24@4@0.6", k=1, temperature=0.3)


def test_limr_protocol_is_its_configs_default():
    config, _ = config_lib.load(["--config", str(ROOT / "configs/limr_eval.py")])
    given = config.benchmarks
    assert benchmark.parse(given.names, k=given.k, temperature=given.temperature) == [
        Benchmark("aime24:test", 4, 0.4),
        Benchmark("math500:test", 1, 0.0),
        Benchmark("amc23:test", 4, 0.4),
    ]
    assert (given.top_p, given.max_response_length) == (0.95, 3072)
    assert config.reward == "math"


def test_what_a_response_says():
    say = benchmark.answer_of
    boxes = r"so \boxed{1} and \boxed{\frac{1}{2}}, or \boxed{3"
    assert say(boxes, True, phrase=None) == r"\frac{1}{2}"
    assert say("it is 3", False, phrase=None) is None
    assert say("#### 4\n#### 12 ", False, phrase="#### ") == "12"
    assert say("#### 12", True, phrase="#### ") is None
    assert say("12", False, phrase="#### ") is None


def test_votes_by_hand():
    assert examine.votes(["1/2", None, "3", "0.5", " 3", "x"]) == [0, -1, 2, 0, 2, 5]
    assert examine.votes([r"\dfrac{1}{2}", r"\frac12", r"\frac{1}{2}"]) == [0, 0, 0]
    assert examine.votes([None, None]) == [-1, -1]
    assert examine.votes(["", "", "7"]) == [0, 0, 2]


def test_majority_by_hand():
    vote_Nk = np.array(
        [
            [0, 0, 2, -1],  # 0 wins
            [0, 1, 0, 1],  # two answers tie
            [0, 1, 2, 3],  # all tie
            [-1, -1, -1, 3],  # one has an answer
            [-1, -1, -1, -1],  # none has
            [0, 1, 1, -1],  # a wrong one wins
        ]
    )
    correct_Nk = np.array(
        [
            [1, 1, 0, 0],
            [1, 0, 1, 0],
            [0, 0, 1, 0],
            [0, 0, 0, 1],
            [0, 0, 0, 0],
            [1, 0, 0, 0],
        ]
    )
    majority_N = evaluate.maj_at_k(vote_Nk, correct_Nk)
    assert majority_N.tolist() == [1, 0.5, 0.25, 1, 0, 0]


def test_majority_is_the_mean_over_even_draws_among_the_first():
    random = np.random.default_rng(0)
    for _ in range(50):
        answer_k = random.integers(-1, 3, 5)
        counts = {a: np.sum(answer_k == a) for a in set(answer_k.tolist()) - {-1}}
        firsts = [a for a in counts if counts[a] == max(counts.values())]
        want = np.mean([a == 2 for a in firsts]) if firsts else 0.0
        got = evaluate.maj_at_k(answer_k[None], (answer_k == 2)[None].astype(float))
        np.testing.assert_allclose(got, [want])


def test_bootstrap_by_hand():
    """Of two problems, one right: 0, ½ or 1 with probability ¼, ½, ¼."""
    key = stream_key(0, "bootstrap")
    part_FN, whole_FN = np.array([[0, 1], [1, 0], [2, 2], [0, 3]]), np.ones((4, 2))
    whole_FN[3] = [0, 1]  # counts its second problem only
    share_RF = evaluate.bootstrap(part_FN, whole_FN, key, draws=4000)
    assert share_RF.shape == (4000, 4)
    values, counts = np.unique(share_RF[:, 0], return_counts=True)
    assert values.tolist() == [0, 0.5, 1]
    np.testing.assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=0.025)
    # All figures are of the same draw.
    np.testing.assert_allclose(share_RF[:, 0] + share_RF[:, 1], 1)
    assert evaluate.interval(share_RF[:, 0]) == (0, 1)
    assert evaluate.interval(share_RF[:, 2]) == (2, 2)
    # A draw without the one problem that counts is no number, and is not counted.
    np.testing.assert_allclose(np.isnan(share_RF[:, 3]).mean(), 0.25, atol=0.025)
    assert evaluate.interval(share_RF[:, 3]) == (3, 3)
    assert np.isnan(evaluate.interval(np.full(3, np.nan))).all()
    again = evaluate.bootstrap(part_FN, whole_FN, key, draws=4000)
    np.testing.assert_array_equal(share_RF, again)


def test_bootstrap_of_many_problems_is_the_normal_interval():
    """Also in blocks: 2,000 draws of 6,000 problems do not go at once."""
    right_N = np.arange(6000) < 1800
    share_RF = evaluate.bootstrap(
        right_N[None], np.ones((1, 6000)), stream_key(1, "bootstrap")
    )
    low, high = evaluate.interval(share_RF[:, 0])
    half = 1.96 * np.sqrt(0.3 * 0.7 / 6000)
    np.testing.assert_allclose([low, high], [0.3 - half, 0.3 + half], atol=half / 8)
    block = 2**22 // 6000
    assert not np.array_equal(share_RF[:block], share_RF[block : 2 * block])


def test_report_by_hand():
    def of(values, dtype=bool):
        return np.array(values, dtype)

    result = evaluate.Evaluation(
        correct_Nk=of([[1, 1, 0], [0, 1, 0], [1, 1, 1]], np.float32),
        valid_Nk=of([[1, 1, 1], [1, 1, 1], [1, 1, 0]]),
        well_formed_Nk=of([[1, 1, 1], [0, 1, 0], [1, 1, 1]]),
        truncated_Nk=of([[0, 0, 0], [1, 0, 1], [0, 0, 0]]),
        length_Nk=of([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.int32),
        response_NkT=np.zeros((3, 3, 0), np.int32),
    )
    answers = [["5", "5.0", "6"], [None, "7", "8"], ["9", "9", "9"]]
    said, accuracy_R = examine.report(
        examine.Answered(result, answers, levels=(1, 2, None)),
        stream_key(0, "bootstrap"),
    )
    values = {name: x["value"] for name, x in said.items() if name != "levels"}
    want = {
        "accuracy": 5 / 8,
        "accuracy_well_formed": 5 / 6,
        "well_formed": 6 / 8,
        "truncated_share": 2 / 9,
        "invalid_share": 1 / 9,
        "response_length": 5,
        # The third problem has an invalid response.
        "pass_at_2": (1 + 2 / 3) / 2,
        "pass_at_3": 1,
        "maj_at_3": (1 + 0.5) / 2,
        "answered": 8 / 9,
    }
    assert values.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-6, err_msg=name)
        assert said[name]["low"] <= value <= said[name]["high"]
    assert accuracy_R.shape == (2000,)
    np.testing.assert_allclose(
        [said["accuracy"]["low"], said["accuracy"]["high"]], [1 / 3, 1]
    )
    assert said["levels"].keys() == {"1", "2"}
    second = said["levels"]["2"]
    assert second["problems"] == 1
    np.testing.assert_allclose(second["accuracy"]["value"], 1 / 3)
    assert second["maj_at_3"] == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_nothing_valid_is_null_in_json():
    result = evaluate.Evaluation(
        *[np.zeros((2, 1), x) for x in (np.float32, bool, bool, bool, np.int32)],
        response_NkT=np.zeros((2, 1, 0), np.int32),
    )
    said, _ = examine.report(
        examine.Answered(result, [[None], [None]], (None, None)),
        stream_key(0, "bootstrap"),
    )
    assert said["accuracy"] == {"value": None, "low": None, "high": None}
    assert said["invalid_share"]["value"] == 1
    json.dumps(said, allow_nan=False)


# ---- the command -----------------------------------------------------------------


def luck(prompts, completions, **columns):
    """A reward that a random policy gets now and then; None now and then."""
    draws = [zlib.crc32(completion.encode()) % 3 for completion in completions]
    return [None if draw == 2 else float(draw) for draw in draws]


REWARD = "test_evaluate_launch.luck"
COUNT, K = 5, 2


def launch():
    spec = importlib.util.spec_from_file_location("launch", ROOT / "launch/evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model_config_of(config):
    return read_model_config(config.model, load_tokenizer(config.tokenizer).vocab_size)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's workdir with checkpoints of steps 1 and 2; its problems."""
    folder = tmp_path_factory.mktemp("run")
    problems = write_problems(folder / "held_out.jsonl", COUNT)
    config = tiny_run.configure(
        folder / "train.jsonl", data__eval=problems, rollout__slots=4
    )
    workdir = folder / "run"
    checkpoint.claim(workdir, {"config": config.to_dict(), "version": "0"})
    with checkpoint.Checkpointer(workdir, keep=2) as saver:
        for step in (1, 2):
            params = random_params(model_config_of(config), seed=step)
            state = {"train": {"params": params, "moment": np.ones(3)}}
            saver.save(step, jax.device_put(state), {})
    return workdir


def call(*argv):
    """The command in this process, on one device; its last line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            benchmark,
            "make_mesh",
            lambda **axes: tiny_run.sharding.make_mesh(
                **axes, devices=jax.devices()[:1]
            ),
        )
        launch().main([str(each) for each in argv])


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def sat(trained):
    """The folder of an evaluation of the run, which nothing interrupted."""
    out = trained.parent / "whole"
    call("--workdir", trained, "--out", out, "--k", K, "--reward", REWARD)
    return out


def dumped(out, k=K):
    return [*metrics.read_dump(out / folder_of(out))]


def folder_of(out):
    (folder,) = (each.name for each in out.iterdir() if each.is_dir())
    return folder


def test_every_response_is_kept_and_the_figures_are_theirs(sat, trained):
    rows = dumped(sat)
    assert [(row["id"], row["sample"]) for row in rows] == [
        (f"held_out/{n}", k) for n, k in itertools.product(range(COUNT), range(K))
    ]
    # Chunks of two problems, the last of one.
    assert [row["step"] for row in rows] == [2] * 4 + [4] * 4 + [5] * 2
    for row in rows:
        (value,) = luck([], [row["response"]])
        assert row["valid"] == (value is not None)
        assert row["correct"] == (value or 0)
        assert row["truncated"] <= (row["length"] == 6)
    result = checkpoint.read_result(sat)
    label = f"{trained.parent / 'held_out.jsonl'}@{K}"
    (said,) = result["benchmarks"].values()
    assert list(result["benchmarks"]) == [label]
    assert (said["problems"], said["k"], said["temperature"]) == (COUNT, K, 0.4)
    right = [row["correct"] for row in rows if row["valid"]]
    np.testing.assert_allclose(said["accuracy"]["value"], np.mean(right))
    assert 0 < said["accuracy"]["value"] < 1 and said["invalid_share"]["value"] > 0
    np.testing.assert_allclose(
        said["response_length"]["value"], np.mean([row["length"] for row in rows])
    )
    assert result["mean_accuracy"] == said["accuracy"]
    odd = [row["correct"] for row in rows if row["level"] == 1 and row["valid"]]
    np.testing.assert_allclose(said["levels"]["1"]["accuracy"]["value"], np.mean(odd))
    assert result["policy"] == {"run": str(trained), "step": 2}


def test_stopped_anywhere_it_goes_on_to_the_same(sat, trained, capsys):
    """The dump is torn in its second chunk, as a kill may do."""
    (segment,) = (sat / folder_of(sat) / "rollouts").iterdir()
    whole, result = segment.read_bytes(), checkpoint.read_result(sat)
    first_end = next(metrics._members(segment))[1]
    segment.write_bytes(whole[: first_end + 20])
    (sat / "result.json").unlink()
    call("--workdir", trained, "--out", sat, "--k", K, "--reward", REWARD)
    out = capsys.readouterr().out
    assert f"going on after 2 of {COUNT} problems" in out
    assert segment.read_bytes() == whole
    again = json.loads(out.strip().splitlines()[-1])
    assert again == checkpoint.read_result(sat)
    assert {**again, "seconds": 0} == {**result, "seconds": 0}


def test_finished_it_says_the_same_and_answers_nothing(sat, trained, capsys):
    result = checkpoint.read_result(sat)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "make", None)
        call("--workdir", trained, "--out", sat, "--k", K, "--reward", REWARD)
    printed = capsys.readouterr().out
    assert {**json.loads(printed.splitlines()[-1]), "seconds": 0} == {
        **result,
        "seconds": 0,
    }
    table = printed.splitlines()[-5:-1]
    assert "avg@k" in table[0] and "maj@k" in table[0]
    assert [line.split()[:2] for line in table[2:4]] == [["level", "0"], ["level", "1"]]


def test_another_command_in_the_folder_is_refused(sat, trained):
    before = {path: path.read_bytes() for path in sat.rglob("*") if path.is_file()}
    base = ["--workdir", trained, "--out", sat, "--k", K, "--reward", REWARD]
    for more, field in (
        (["--step", 1], "policy.step: 2 → 1"),
        (["--top_p", "0.5"], "top_p: 0.95 → 0.5"),
        (["--temperature", "0.5"], r"temperature: 0.4 → 0.5"),
        (["--max_response_length", 5], "max_response_length: 6 → 5"),
        (["--config.seed=1"], "seed: 0 → 1"),
    ):
        with pytest.raises(InputError, match=field) as error:
            call(*base, *more)
        assert "give another --out" in str(error.value)
        assert "\n" not in str(error.value)
    after = {path: path.read_bytes() for path in sat.rglob("*") if path.is_file()}
    assert after == before


def test_another_policy_of_the_same_name_is_refused(sat, trained, monkeypatch):
    load = benchmark.past_run.load_params
    monkeypatch.setattr(
        benchmark.past_run,
        "load_params",
        lambda *args: jax.tree.map(lambda x: 2 * x, load(*args)),
    )
    with pytest.raises(InputError, match="params_digest"):
        call("--workdir", trained, "--out", sat, "--k", K, "--reward", REWARD)


def test_greedy_is_the_loops_own_evaluation(trained, tmp_path, capsys):
    """The in-graph verifier's figures: those of `train.py`'s evaluator."""
    from limr_jax import past_run, run

    call("--workdir", trained, "--out", tmp_path / "out", "--step", 1)
    said = last_line(capsys)
    config = past_run.read_config(trained)
    write_problems(trained.parent / "train.jsonl", 8, add=7)
    made = tiny_run.set_up(config)
    params = past_run.load_params(trained, 1, made.model_config, made.mesh)
    with jax.set_mesh(made.mesh):
        greedy = run.put_sampling(made.mesh, temperature=0.0)
        result = run.evaluator(made, 1, config.seed)(params, greedy)
    (figures,) = said["benchmarks"].values()
    for name, value in evaluate.summary(result).items():
        shown = figures[name]["value"]
        np.testing.assert_allclose(np.nan if shown is None else shown, value)
    rows = dumped(tmp_path / "out")
    assert [row["response"] for row in rows] == [
        made.tokenizer.decode(row_kT[0, :length])
        for row_kT, (length,) in zip(result.response_NkT, result.length_Nk)
    ]
    assert said["policy"]["step"] == 1


def test_an_exported_checkpoint_answers_as_its_run(sat, trained, tmp_path, capsys):
    from limr_jax import past_run, weights
    from limr_jax.sharding import make_mesh

    config = past_run.read_config(trained)
    model_config = model_config_of(config)
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    params = past_run.load_params(trained, 2, model_config, mesh)
    weights.save_params(tmp_path / "hf", params, model_config)
    call(
        *("--config", ROOT / "configs/base.py"),
        *(f"--config.model.init={tmp_path / 'hf'}", "--out", tmp_path / "out"),
        f"--config.tokenizer={ROOT / 'limr_jax/assets/arithmetic'}",
        f"--benchmarks={trained.parent / 'held_out.jsonl'}@{K}@0.4",
        *("--max_response_length", 6, "--reward", REWARD),
    )
    said, run_said = last_line(capsys), checkpoint.read_result(sat)
    assert said["params_digest"] == run_said["params_digest"]
    assert said["benchmarks"] == run_said["benchmarks"]
    assert [row["response"] for row in dumped(tmp_path / "out")] == [
        row["response"] for row in dumped(sat)
    ]


def test_dry_run_writes_nothing(trained, tmp_path, capsys):
    call("--workdir", trained, "--out", tmp_path / "out", "--dry_run", "--k", 3)
    assert "held_out.jsonl@3: 5 problems, 3 at temperature 0.4" in (
        capsys.readouterr().out
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "argv, problem",
    [
        ([], "give one of --config"),
        (["--workdir", "RUN", "--config", "configs/tiny.py"], "give one of --config"),
        (["--workdir", "nowhere"], "run.json does not exist"),
        (["--workdir", "RUN", "--benchmark", "x"], "did you mean --benchmarks?"),
        (["--workdir", "RUN", "--k", "two"], "must be a whole number"),
        (
            ["--workdir", "RUN", "--k", "2", "--temperature", "0"],
            "responses are the same",
        ),
        (["--workdir", "RUN", "--top_p", "0"], "top_p=0.0 is out of range"),
        (["--workdir", "RUN", "--max_response_length", "-1"], "must be at least 1"),
        (["--workdir", "RUN", "--benchmarks", "math50"], "math500"),
        (["--workdir", "RUN", "--benchmarks", "no.jsonl"], "no such file"),
        (["--workdir", "RUN", "--reward", "mth"], "mth"),
        (["--workdir", "RUN", "--step", "7", "--out", "OUT"], "is no checkpoint"),
        (["--config", f"{ROOT}/configs/base.py", "--step", "1"], "give --workdir=RUN"),
        (["--config", f"{ROOT}/configs/limr_eval.py"], "give --config.model.init=DIR"),
        (["--workdir", "RUN", "--out", "gs://bucket/x"], "give a local path"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(argv, problem, trained, tmp_path, capsys):
    places = {"RUN": str(trained), "OUT": str(tmp_path / "out")}
    with pytest.MonkeyPatch.context() as patch:
        argv = [places.get(each, each) for each in argv]
        patch.setattr(sys, "argv", ["evaluate.py", *argv])
        with pytest.raises(SystemExit) as end:
            config_lib.run_main(launch().main)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert problem in error and error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_response_that_is_missing_is_named(sat, trained, tmp_path):
    config = config_lib.load(["--config", str(ROOT / "configs/base.py")])[0]
    exam_config = config.copy_and_resolve_references()
    with exam_config.unlocked():
        exam_config.data.eval = str(trained.parent / "held_out.jsonl")
        exam_config.tokenizer = str(ROOT / "limr_jax/assets/arithmetic")
        exam_config.model = checkpoint.read_run(trained)["config"]["model"]
    exam = benchmark.set_up(exam_config)
    rows = dumped(sat)
    metrics.Dump(tmp_path).add(COUNT, rows[:-1])
    (paper,) = exam.papers
    paper = dataclasses.replace(paper, benchmark=Benchmark("x", K, 1.0))
    with pytest.raises(InputError, match="remove that folder"):
        examine.read(tmp_path, paper)
