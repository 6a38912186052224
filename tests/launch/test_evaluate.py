"""launch/evaluate.py: its statistics by hand, what it keeps, what it refuses."""

import dataclasses
import importlib.util
import itertools
import json
import re
import runpy
import sys
import zlib

import jax
import numpy as np
import pytest
import tiny_run
from tiny_run import ROOT, write_problems

from limr_jax.config import load as config_lib
from limr_jax.data.tokenizer import load_tokenizer
from limr_jax.errors import InputError
from limr_jax.evaluation import benchmarks, evaluator, run_benchmarks
from limr_jax.evaluation.accuracy import maj_at_k, summary
from limr_jax.evaluation.benchmarks import Benchmark
from limr_jax.models.from_config import read_model_config
from limr_jax.rewards.types import CODE
from limr_jax.rollout.sampling import put_sampling
from limr_jax.storage import files, rollout_dump
from limr_jax.storage.workdir import read_result, read_run


def test_benchmarks_by_name():
    made = benchmarks.parse(
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
    made = benchmarks.parse("aime24@1,amc23,math500@2", k=8, temperature=0.7)
    assert [(x.k, x.temperature) for x in made] == [(1, 0.7), (8, 0.7), (2, 0.7)]


def test_a_file_whose_name_has_an_at(tmp_path, monkeypatch):
    """With whatever may stand behind the name of a set."""
    monkeypatch.chdir(tmp_path)
    names = ("held@out.jsonl", "held@out.jsonl[:3]", "held@out.jsonl[:3]@4")
    names += ("held@out.jsonl@4@0.6", "held@4@0.6", "math500", "math500[:2]@4")
    refuse = runpy.run_path(str(ROOT / "launch/likelihood.py"))["_refuse_names"]
    for name in ("held@out.jsonl", "held@4", "math500"):
        (tmp_path / name).write_text("")
    split = {name: benchmarks.split_name(name) for name in names}
    assert split == {
        "held@out.jsonl": ("held@out.jsonl", []),
        "held@out.jsonl[:3]": ("held@out.jsonl[:3]", []),
        "held@out.jsonl[:3]@4": ("held@out.jsonl[:3]", ["4"]),
        "held@out.jsonl@4@0.6": ("held@out.jsonl", ["4", "0.6"]),
        # The file is called so; without it this were 4 responses.
        "held@4@0.6": ("held@4", ["0.6"]),
        "math500": ("math500", []),
        "math500[:2]@4": ("math500[:2]", ["4"]),
    }
    for name, (_, behind) in split.items():
        if behind:
            with pytest.raises(InputError, match="leave out what stands behind the @"):
                refuse(name, 4)
        else:
            refuse(name, 4)
    # A file goes before a set of its name.
    made = benchmarks.parse("math500[:2]@2,held@out.jsonl[:3]@1", k=1, temperature=-1.0)
    assert [x.spec for x in made] == ["math500[:2]", "held@out.jsonl[:3]"]


@pytest.mark.parametrize(
    "names, problem",
    [
        ("", "no benchmark is named"),
        ("aime24@four", "'aime24@four': after the @ stand a whole number"),
        ("aime24@4@hot", "after the @ stand"),
        ("aime24@4@0.4@1", "after the @ stand"),
        ("aime24@0", "^benchmark aime24:test@0: k=0 must be from 1 to 65536$"),
        ("aime24@4@0", "greedy, its 4 responses are the same"),
        ("aime24@4@nan", "aime24:test@4: temperature=nan must be from 0.001 to 1000$"),
        ("aime24@4,aime24:test@4@0.6", "aime24:test@4 is named twice"),
    ],
)
def test_benchmarks_that_make_no_sense(names, problem):
    with pytest.raises(InputError, match=problem):
        benchmarks.parse(names, k=1, temperature=-1.0)


BEHIND = (
    "after the @ stand a whole number of responses and, after another @, their "
    "temperature; write aime24@4@0.6"
)


@pytest.mark.parametrize(
    "names, line",
    [
        (
            "",
            "no benchmark is named and the config has no data.eval; give "
            "--benchmarks=math500,aime24@4",
        ),
        (" ,", "benchmarks ' ,' name no set; write math500,aime24@4 or the like"),
        ("aime24@four", "benchmark 'aime24@four': " + BEHIND),
        ("aime24@4@hot", "benchmark 'aime24@4@hot': " + BEHIND),
        ("aime24@4@0.4@1", "benchmark 'aime24@4@0.4@1': " + BEHIND),
        (
            "aime24@4@0",
            "benchmark aime24:test@4: greedy, its 4 responses are the same; give k=1 "
            "or a temperature above 0",
        ),
        (
            "aime24@4,aime24:test@4@0.6",
            "benchmark aime24:test@4 is named twice; name it once",
        ),
    ],
)
def test_benchmarks_are_refused_by_this_line(names, line):
    with pytest.raises(InputError) as caught:
        benchmarks.parse(names, k=1, temperature=-1.0)
    assert str(caught.value) == line


def test_a_flag_that_no_benchmark_would_read_is_refused():
    for names, given, said in (
        ("aime24@4,amc23@4", {"k": 8}, "--k=8 (benchmarks.k)"),
        ("a@4@0.6", {"temperature": 0.3}, "--temperature=0.3 (benchmarks.temperature)"),
    ):
        with pytest.raises(InputError) as caught:
            benchmarks.parse(names, **{"k": 1, "temperature": -1.0} | given)
        assert str(caught.value) == (
            f"{said} is for benchmarks that do not say, but all of {names!r} do, after "
            "an @; leave out one of the two"
        )


def test_limr_protocol_is_its_configs_default():
    config, _ = config_lib.load(["--config", str(ROOT / "configs/limr_eval.py")])
    given = config.benchmarks
    assert benchmarks.parse(given.names, k=given.k, temperature=given.temperature) == [
        Benchmark("aime24:test", 4, 0.4),
        Benchmark("math500:test", 1, 0.0),
        Benchmark("amc23:test", 4, 0.4),
    ]
    assert (given.top_p, given.max_response_length) == (0.95, 3072)
    assert config.reward == "math"


def test_what_a_response_says():
    say = benchmarks.answer_of
    boxes = r"so \boxed{1} and \boxed{\frac{1}{2}}, or \boxed{3"
    assert say(boxes, True, phrase=None) == r"\frac{1}{2}"
    assert say("it is 3", False, phrase=None) is None
    assert say("#### 4\n#### 12 ", False, phrase="#### ") == "12"
    assert say("#### 12", True, phrase="#### ") is None
    assert say("12", False, phrase="#### ") is None


def test_responses_longer_than_the_checkpoint_was_trained_for(tmp_path):
    """Its longest prompt, '4+1=', has four tokens."""
    short = tiny_run.short_sighted(tmp_path / "model", positions=9)
    problems = write_problems(tmp_path / "held_out.jsonl", 5)
    fields = {"model.init": short, "benchmarks.names": problems}
    fields |= {f"model.{name}": 0 for name in tiny_run.MODEL}
    with pytest.raises(InputError) as caught:
        benchmarks.set_up(config_lib.load(tiny_run.arguments(fields))[0])
    assert str(caught.value) == (
        f"the longest prompt of {problems}, 4, + benchmarks.max_response_length=6 = 10 "
        f"tokens, but {short} was trained for 9 (max_position_embeddings); lower that, "
        "or allow it with --config.model.max_length=10"
    )


def test_votes_by_hand():
    assert run_benchmarks.votes(["1/2", None, "3", "0.5", " 3", "x"]) == [
        0,
        -1,
        2,
        0,
        2,
        5,
    ]
    assert run_benchmarks.votes([r"\dfrac{1}{2}", r"\frac12", r"\frac{1}{2}"]) == [
        0,
        0,
        0,
    ]
    assert run_benchmarks.votes([None, None]) == [-1, -1]
    assert run_benchmarks.votes(["", "", "7"]) == [0, 0, 2]
    assert run_benchmarks.votes(["28%", "0.28", "28"]) == [0, 0, 2]
    assert run_benchmarks.votes(["1/3", "0.333", "0.3333"]) == [0, 1, 2]
    assert run_benchmarks.votes(["y" * 3000, "y" * 3000, "y" * 2999]) == [0, 0, 2]


@pytest.mark.parametrize(
    "answers",
    [
        # The grader takes 28 and 0.28 for 28 %, and not one for the other.
        ["28", r"28\%", "0.28", "7", "7"],
        # As 1/3 it takes 0.333, but 0.333 for 1/3 it does not.
        ["1/3", "0.333", "0.3333", r"\frac13", "2"],
        ["x", r"\text{x}", None, "y", "$x$"],
    ],
)
def test_who_votes_with_whom_does_not_depend_on_the_order(answers):
    def groups(order):
        made = run_benchmarks.votes([answers[i] for i in order])
        return {frozenset(i for i, y in zip(order, made) if y == x) for x in made}

    want = groups(range(5))
    right_k = np.array([0.0, 1.0, 0.0, 1.0, 1.0])
    majority = maj_at_k(np.array([run_benchmarks.votes(answers)]), right_k[None])
    for order in itertools.permutations(range(5)):
        assert groups(order) == want
        vote_Nk = np.array([run_benchmarks.votes([answers[i] for i in order])])
        again = maj_at_k(vote_Nk, right_k[None, list(order)])
        np.testing.assert_allclose(again, majority, rtol=1e-12)


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
    majority_N = maj_at_k(vote_Nk, correct_Nk)
    assert majority_N.tolist() == [1, 0.5, 0.25, 1, 0, 0]


def test_majority_is_the_mean_over_even_draws_among_the_first():
    random = np.random.default_rng(0)
    for _ in range(50):
        answer_k = random.integers(-1, 3, 5)
        counts = {a: np.sum(answer_k == a) for a in set(answer_k.tolist()) - {-1}}
        firsts = [a for a in counts if counts[a] == max(counts.values())]
        want = np.mean([a == 2 for a in firsts]) if firsts else 0.0
        got = maj_at_k(answer_k[None], (answer_k == 2)[None].astype(float))
        np.testing.assert_allclose(got, [want])


def answered(*, correct, valid, answers, levels=None, **more):
    """A benchmark's responses; what is not given is well formed, whole and short."""
    valid = np.array(valid, bool)
    given = {"well_formed": np.ones_like(valid), "truncated": np.zeros_like(valid)}
    given |= {"length": np.ones_like(valid)} | more
    result = evaluator.Evaluation(
        correct_Nk=np.array(correct, np.float32),
        valid_Nk=valid,
        well_formed_Nk=np.array(given["well_formed"], bool),
        truncated_Nk=np.array(given["truncated"], bool),
        length_Nk=np.array(given["length"], np.int32),
        response_NkT=np.zeros((*valid.shape, 0), np.int32),
        reason_Nk=np.where(valid, CODE["graded"], CODE["memory"]),
    )
    levels = levels or (None,) * len(valid)
    return run_benchmarks.StoredResponses(result, answers, levels)


def test_report_by_hand():
    said = run_benchmarks.report(
        answered(
            correct=[[1, 1, 0], [0, 1, 0], [1, 1, 1]],
            valid=[[1, 1, 1], [1, 1, 1], [1, 1, 0]],
            well_formed=[[1, 1, 1], [0, 1, 0], [1, 1, 1]],
            truncated=[[0, 0, 0], [1, 0, 1], [0, 0, 0]],
            length=[[1, 2, 3], [4, 5, 6], [7, 8, 9]],
            answers=[["5", "5.0", "6"], [None, "7", "8"], ["9", "9", "9"]],
            levels=(1, 2, None),
        )
    )
    assert said["ungradable"] == {"memory": 1}
    others = said.keys() - {"levels", "ungradable"}
    values = {name: said[name]["value"] for name in others}
    want = {
        "accuracy": 5 / 9,  # the third problem's last response is ungradable
        "accuracy_well_formed": 5 / 7,
        "well_formed": 7 / 9,
        "truncated_share": 2 / 9,
        "ungradable_share": 1 / 9,
        "response_length": 5,
        "pass_at_2": (1 + 2 / 3 + 1) / 3,
        "pass_at_3": 1,
        "maj_at_3": (1 + 0.5 + 2 / 3) / 3,
        "answered": 8 / 9,
    }
    assert values.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-6, err_msg=name)
        assert said[name]["low"] <= value <= said[name]["high"]
    # 2/3, 1/3, 2/3 with two problems solved and two unsolved beside them.
    value_7 = np.array([2 / 3, 1 / 3, 2 / 3, 1, 1, 0, 0])
    half = 1.959964 * value_7.std() / np.sqrt(7)
    ends = [said["accuracy"]["low"], said["accuracy"]["high"]]
    np.testing.assert_allclose(ends, [value_7.mean() - half, value_7.mean() + half])
    # All of three: z² = 3.8415, and 3 / (3 + z²). Means of 2, 5, 8: t(2) · 3 / √3.
    assert said["pass_at_3"] == pytest.approx(
        {"value": 1, "low": 0.4385, "high": 1}, abs=1e-4
    )
    length = {"value": 5, "low": 5 - 7.452413, "high": 5 + 7.452413}
    assert said["response_length"] == pytest.approx(length)
    assert said["levels"].keys() == {"1", "2"}
    second = said["levels"]["2"]
    assert second["problems"] == 1
    np.testing.assert_allclose(second["accuracy"]["value"], 1 / 3)
    assert second["maj_at_3"]["value"] == 0.5
    assert second["response_length"] == {"value": 5, "low": None, "high": None}
    json.dumps(said, allow_nan=False)


def test_greedy_on_30_problems_is_wilsons_interval():
    def accuracy(right):
        correct = [[float(i < right)] for i in range(30)]
        answers = [["1"]] * 30
        one = answered(correct=correct, valid=np.ones((30, 1)), answers=answers)
        return run_benchmarks.report(one)["accuracy"]

    none = {"value": 0, "low": 0, "high": 0.113513}
    assert accuracy(0) == pytest.approx(none, abs=1e-6)
    one = {"value": 1 / 30, "low": 0.005909, "high": 0.166704}
    assert accuracy(1) == pytest.approx(one, abs=1e-6)


def test_a_problem_with_ungradable_responses_stays():
    """In pass@k and maj@k as well; an ungradable one votes, and is wrong."""
    said = run_benchmarks.report(
        answered(
            correct=[[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]],
            valid=[[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]],
            answers=[["7", "7", "8", None], ["8"] * 4, ["7", "8", "8", "9"]],
        )
    )
    assert said.pop("ungradable") == {"memory": 7}
    value_of = {name: x["value"] for name, x in said.items() if name != "levels"}
    assert value_of["accuracy"] == 3 / 12 and value_of["ungradable_share"] == 7 / 12
    assert value_of["pass_at_4"] == pytest.approx(2 / 3)
    assert value_of["pass_at_2"] == pytest.approx((5 / 6 + 0 + 1 / 2) / 3)
    # The second's ungradable answer, and the third's, have the most votes.
    assert value_of["maj_at_4"] == pytest.approx(1 / 3)


def test_figures_as_they_are_shown():
    show = launch()._shown
    assert show({"value": 0.5241, "low": 0.48, "high": 0.568}, 100) == (
        "52.4 [48.0, 56.8]"
    )
    assert show({"value": 12.34, "low": None, "high": None}, 1) == "12.3"
    nothing = {"value": None, "low": None, "high": None}
    assert show(nothing, 100) == show(None, 100) == "-"


def test_nothing_graded_is_nothing_right():
    said = run_benchmarks.report(
        answered(correct=np.ones((2, 1)), valid=[[0], [0]], answers=[[None], [None]])
    )
    assert said["accuracy"]["value"] == 0 and said["ungradable_share"]["value"] == 1
    json.dumps(said, allow_nan=False)


# ---- the command -----------------------------------------------------------------


def luck(prompts, completions, **columns):
    """A reward that a random policy gets now and then; None now and then."""
    draws = [zlib.crc32(completion.encode()) % 3 for completion in completions]
    return [None if draw == 2 else float(draw) for draw in draws]


def silent(prompts, completions, **columns):
    """It would shape a reward, and has no value for any."""
    return [None] * len(prompts)


REWARD = "launch.test_evaluate.luck"
COUNT, K = 5, 2


def test_what_shapes_a_reward_is_of_no_account_for_what_is_right():
    from limr_jax.rewards import host

    texts = [str(i) for i in range(12)]
    values = luck([], texts)
    batch = [""] * 12, texts, ["1"] * 12
    whole = host.host_reward(f"{REWARD}, 0.5*launch.test_evaluate.silent")
    assert not whole(*batch).valid_B.any()  # in training
    held_out = whole.verifier()(*batch)
    known = [value is not None for value in values]
    assert held_out.valid_B.tolist() == known and 0 < sum(known) < 12
    right = [value == 1 for value in values]
    assert (held_out.correctness_B == 1).tolist() == right
    # A second verifier stays one; a judge that is a part of the reward never was.
    for spec, first, judge in (
        ("math", "math", "asked"),
        ("0.5*judge", "judge", "asked"),
        ("math, 0.5*judge", "math", None),
    ):
        made = host.host_reward(spec, judge="asked", overlong_buffer=2,
                                  max_response_length=4)  # fmt: skip
        made = made.verifier()
        assert (made.weights, made.judge, made.overlong) == ({first: 1.0}, judge, None)


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
    return tiny_run.checkpoints(tmp_path_factory.mktemp("run"), COUNT)


def call(*argv):
    """The command in this process, on one device; its last line."""
    with tiny_run.one_device(benchmarks):
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
    return [*rollout_dump.read_dump(out / folder_of(out))]


def folder_of(out):
    (folder,) = (each.name for each in out.iterdir() if each.is_dir())
    return folder


@pytest.mark.slow
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
    result = read_result(sat)
    label = f"{trained.parent / 'held_out.jsonl'}@{K}"
    (said,) = result["benchmarks"].values()
    assert list(result["benchmarks"]) == [label]
    assert (said["problems"], said["k"], said["temperature"]) == (COUNT, K, 0.4)
    right = [row["correct"] for row in rows]
    np.testing.assert_allclose(said["accuracy"]["value"], np.mean(right))
    assert 0 < said["accuracy"]["value"] < 1
    ungradable = np.mean([not row["valid"] for row in rows])
    assert said["ungradable_share"]["value"] == ungradable > 0
    np.testing.assert_allclose(
        said["response_length"]["value"], np.mean([row["length"] for row in rows])
    )
    assert result["mean_accuracy"] == pytest.approx(said["accuracy"])
    odd = [row["correct"] for row in rows if row["level"] == 1]
    np.testing.assert_allclose(said["levels"]["1"]["accuracy"]["value"], np.mean(odd))
    assert result["policy"] == {"run": str(trained), "step": 2}


@pytest.mark.slow
def test_stopped_anywhere_it_goes_on_to_the_same(sat, trained, capsys):
    """The dump is torn in its second chunk, as a kill may do."""
    (segment,) = (sat / folder_of(sat) / "rollouts").iterdir()
    whole, result = segment.read_bytes(), read_result(sat)
    first_end = next(rollout_dump.members(segment))[1]
    segment.write_bytes(whole[: first_end + 20])
    (sat / "result.json").unlink()
    call("--workdir", trained, "--out", sat, "--k", K, "--reward", REWARD)
    out = capsys.readouterr().out
    assert f"going on after 2 of {COUNT} problems" in out
    assert segment.read_bytes() == whole
    again = json.loads(out.strip().splitlines()[-1])
    assert again == read_result(sat)
    assert {**again, "seconds": 0} == {**result, "seconds": 0}


def test_finished_it_says_the_same_and_answers_nothing(sat, trained, capsys):
    result = read_result(sat)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_benchmarks, "make_evaluator", None)
        call("--workdir", trained, "--out", sat, "--k", K, "--reward", REWARD)
    printed = capsys.readouterr().out
    assert {**json.loads(printed.splitlines()[-1]), "seconds": 0} == {
        **result,
        "seconds": 0,
    }
    table = printed.splitlines()[-5:-1]
    heads = ["avg@k %", "pass@k %", "maj@k %", "truncated %", "ungradable %", "tokens"]
    assert re.split(r"  +", table[0].strip())[1:] == heads
    share = result["benchmarks"][f"{trained.parent / 'held_out.jsonl'}@{K}"]
    value, low, high = (100 * x for x in share["ungradable_share"].values())
    assert f"  {value:.1f} [{low:.1f}, {high:.1f}]  " in table[1]
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
    load = benchmarks.trained_policy.load_params
    monkeypatch.setattr(
        benchmarks.trained_policy,
        "load_params",
        lambda *args, **named: jax.tree.map(lambda x: 2 * x, load(*args, **named)),
    )
    with pytest.raises(InputError, match="params_digest"):
        call("--workdir", trained, "--out", sat, "--k", K, "--reward", REWARD)


@pytest.mark.slow
def test_greedy_is_the_loops_own_evaluation(trained, tmp_path, capsys):
    """The in-graph verifier's figures: those of `train.py`'s evaluator."""
    from limr_jax import setup
    from limr_jax.evaluation import trained_policy

    call("--workdir", trained, "--out", tmp_path / "out", "--step", 1)
    said = last_line(capsys)
    config = trained_policy.read_config(trained)
    write_problems(trained.parent / "train.jsonl", 8, add=7)
    made = tiny_run.set_up(config)
    params = trained_policy.load_params(trained, 1, made.compute.model, made.mesh)
    with jax.set_mesh(made.mesh):
        greedy = put_sampling(made.mesh, temperature=0.0)
        result = setup.evaluator(made, 1, config.seed)(params, greedy)
    (figures,) = said["benchmarks"].values()
    for name, value in summary(result).items():
        shown = figures[name]["value"]
        np.testing.assert_allclose(np.nan if shown is None else shown, value)
    rows = dumped(tmp_path / "out")
    assert figures["ungradable"] == {}
    assert {row["reason"] for row in rows} <= {"graded", "no_answer"}
    assert [row["response"] for row in rows] == [
        made.tokenizer.decode(row_kT[0, :length])
        for row_kT, (length,) in zip(result.response_NkT, result.length_Nk)
    ]
    assert said["policy"]["step"] == 1


@pytest.mark.slow
def test_an_exported_checkpoint_answers_as_its_run(sat, trained, tmp_path, capsys):
    from limr_jax.evaluation import trained_policy
    from limr_jax.models import hf_weights
    from limr_jax.sharding import make_mesh

    config = trained_policy.read_config(trained)
    model_config = model_config_of(config)
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    params = trained_policy.load_params(trained, 2, model_config, mesh)
    hf_weights.save_params(tmp_path / "hf", params, model_config)
    call(
        *("--config", ROOT / "configs/base.py"),
        *(f"--config.model.init={tmp_path / 'hf'}", "--out", tmp_path / "out"),
        f"--config.tokenizer={ROOT / 'limr_jax/assets/arithmetic'}",
        f"--benchmarks={trained.parent / 'held_out.jsonl'}@{K}@0.4",
        *("--max_response_length", 6, "--reward", REWARD),
    )
    said, run_said = last_line(capsys), read_result(sat)
    assert said["params_digest"] == run_said["params_digest"]
    assert said["benchmarks"] == run_said["benchmarks"]
    assert [row["response"] for row in dumped(tmp_path / "out")] == [
        row["response"] for row in dumped(sat)
    ]


class Silent:
    """An evaluator whose policy says nothing; no program is compiled."""

    def __init__(self, mesh, prompts, *, count, k, **options):
        self.shape = count, k

    def answers(self, params, sampling, start):
        zeros = np.zeros(self.shape, np.int32)[start:]
        formed, tokens = zeros.astype(bool), np.zeros((*zeros.shape, 1), np.int32)
        yield evaluator.Evaluation(
            zeros, ~formed, formed, formed, zeros, tokens, zeros.astype(np.int8)
        )


def test_every_benchmark_has_a_folder_of_its_own(
    trained, tmp_path, capsys, monkeypatch
):
    """Paths and slices that are alike once their odd characters are replaced."""
    monkeypatch.setattr(run_benchmarks, "make_evaluator", Silent)
    (tmp_path / "ev").mkdir()
    sets = [tmp_path / "ev/x.jsonl", tmp_path / "ev_x.jsonl"]
    for add, path in enumerate(sets, 2):
        write_problems(path, 3, add=add)
    specs = [str(sets[0]), str(sets[1]), f"{sets[0]}[:1]", f"{sets[0]}[1:]"]
    out = tmp_path / "out"
    call("--workdir", trained, "--out", out, "--benchmarks", ",".join(specs))
    said = last_line(capsys)["benchmarks"]
    assert [said[f"{spec}@1"]["problems"] for spec in specs] == [3, 3, 1, 2]
    folders = [path.parent for path in out.glob("*/rollouts")]
    rows = {path.name: [*rollout_dump.read_dump(path)] for path in folders}
    assert {name: [row["id"] for row in x] for name, x in rows.items()} == {
        files.folder_name(f"{specs[0]}@1"): ["x/0", "x/1", "x/2"],
        files.folder_name(f"{specs[1]}@1"): ["ev_x/0", "ev_x/1", "ev_x/2"],
        files.folder_name(f"{specs[2]}@1"): ["x/0"],
        files.folder_name(f"{specs[3]}@1"): ["x/1", "x/2"],
    }


def test_dry_run_writes_nothing(trained, tmp_path, capsys):
    call("--workdir", trained, "--out", tmp_path / "out", "--dry_run", "--k", 3)
    assert "held_out.jsonl@3: 5 problems, 3 at temperature 0.4" in (
        capsys.readouterr().out
    )
    assert not (tmp_path / "out").exists()


@pytest.fixture
def refused(trained, tmp_path, capsys, monkeypatch):
    """argv → the one line that it ends with, without 'error: '."""
    places = {"RUN": str(trained), "OUT": str(tmp_path / "out")}

    def start(argv):
        argv = [places.get(each, each) for each in argv]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *argv])
        with pytest.raises(SystemExit) as end:
            config_lib.run_main(launch().main)
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return error.removeprefix("error: ").removesuffix("\n")

    return start


@pytest.mark.parametrize(
    "argv, line",
    [
        (
            ["--workdir", "RUN", "--k", "two"],
            "--k=two: must be a whole number (default 1)",
        ),
        (
            ["--workdir", "RUN", "--k", "2", "--temperature", "0"],
            "benchmark {held_out}@2: greedy, its 2 responses are the same; give k=1 or "
            "a temperature above 0",
        ),
        (["--workdir", "RUN", "--top_p", "0"], "--top_p=0.0 must be from 1e-06 to 1"),
        (
            ["--workdir", "RUN", "--max_response_length", "-1"],
            "--max_response_length=-1 must be from 0 to 1048576",
        ),
        (
            ["--workdir", "RUN", "--benchmarks", "math50"],
            "math50: no data set is called 'math50', the nearest is 'math500'; give "
            "one of aime24, aime25, amc23, arithmetic, arithmetic_sft, gsm8k, math12k, "
            "math500, math_lvl3to5, minerva_math, numinamath, olympiadbench, proofs, "
            "or a .jsonl file",
        ),
        ([], "give one of --config=path/to/file.py and --workdir=RUN"),
        (
            ["--workdir", "RUN", "--config", "configs/tiny.py"],
            "give one of --config=path/to/file.py and --workdir=RUN",
        ),
        (
            ["--workdir", "/nowhere"],
            "/nowhere/run.json does not exist; give the workdir of a run",
        ),
        (
            ["--workdir", "RUN", "--benchmark", "x"],
            "unknown flag --benchmark; did you mean --benchmarks? Flags: --config, "
            "--workdir, --dry_run, --step, --out, --against, --benchmarks, --k, "
            "--temperature, --top_p, --max_prompt_length, --max_response_length, "
            "--reward",
        ),
        (
            ["--workdir", "RUN", "--benchmarks", "no.jsonl"],
            "no.jsonl: no such file; check the path, or name a public set (python "
            "launch/data.py list)",
        ),
        (
            ["--workdir", "RUN", "--reward", "mth"],
            "reward='mth' is unknown; give one of math, limr, judge or a dotted path "
            "to a function",
        ),
        (
            ["--workdir", "RUN", "--step", "7", "--out", "OUT"],
            "{run}/checkpoints/7 is no checkpoint; the steps there are [1, 2]",
        ),
        (
            ["--workdir", "RUN", "--step=-7"],
            "--step=-7 must be a checkpoint's, 0 or more",
        ),
        (
            ["--config", f"{ROOT}/configs/base.py", "--step", "1"],
            "--step=1 is of a run; give --workdir=RUN",
        ),
        (
            ["--config", f"{ROOT}/configs/limr_eval.py"],
            "neither a checkpoint nor a tokenizer is named; give "
            "--config.model.init=DIR, or --workdir=RUN",
        ),
        (
            [
                *("--config", f"{ROOT}/configs/tiny.py"),
                *("--config.model.base_dtype", "int8"),
            ],
            "model.base_dtype=int8 with model.lora.rank=0, which has no adapters and "
            "no frozen base; give a rank, or model.base_dtype=float32",
        ),
        (
            ["--workdir", "RUN", "--out", "gs://bucket/x"],
            "--out=gs://bucket/x is not on this machine; give a local path",
        ),
    ],
)
def test_bad_input_is_this_line(argv, line, refused, trained):
    line = line.replace("{run}", str(trained))
    held_out = str(trained.parent / "held_out.jsonl")
    assert refused(argv) == line.replace("{held_out}", held_out)


def test_a_response_that_is_missing_is_named(sat, trained, tmp_path):
    config = config_lib.load(["--config", str(ROOT / "configs/base.py")])[0]
    suite_config = config.copy_and_resolve_references()
    with suite_config.unlocked():
        suite_config.data.eval = str(trained.parent / "held_out.jsonl")
        suite_config.tokenizer = str(ROOT / "limr_jax/assets/arithmetic")
        suite_config.model = read_run(trained)["config"]["model"]
    suite = benchmarks.set_up(suite_config)
    rows = dumped(sat)
    rollout_dump.Dump(tmp_path).add(COUNT, rows[:-1])
    (task,) = suite.tasks
    task = dataclasses.replace(task, benchmark=Benchmark("x", K, 1.0))
    with pytest.raises(InputError, match="remove that folder"):
        run_benchmarks.read_responses(tmp_path, task)
