"""Rewards graded on the hosts, through the real loop: what each part of it sees."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from rewards.math.test_grade import HOSTILE
from tiny_run import ROOT, configure, set_up, write_problems

from limr_jax import train
from limr_jax.algorithms import grpo
from limr_jax.config import load as config_lib
from limr_jax.data import tokenizer
from limr_jax.errors import InputError
from limr_jax.rewards.types import INVALID, REASONS
from limr_jax.rollout.types import Rollout
from limr_jax.storage import checkpoint, metrics, rollout_dump

# What the four rollouts of the problem i+1= write, and whether they end.
WRITES = [
    lambda i: (rf"so \boxed{{{i + 1}}}", True),  # right
    lambda i: (rf"so \boxed{{{i}}}", True),  # wrong
    lambda i: (rf"so \boxed{{{i + 1}}}", False),  # right, but cut off
    lambda i: (f"so {i + 1}", True),  # no box
]
LIMR = [1.0, -0.5, -1.0, -1.0]
RIGHT = [1.0, 0.0, 1.0, 0.0]

USERS = '''
import time


def shortness(prompts, completions, **columns):
    """None for whatever is cut off before a box's end, else 1 or less."""
    assert len(prompts) == len(columns["level"]) == len(completions)
    return [None if "{3}" in c else 1 / len(c) for c in completions]


def same(prompts, completions, *, answer, **columns):
    return [float(a in c) for a, c in zip(answer, completions)]


def few(prompts, completions, **columns):
    return [0.0]


def slow(prompts, completions, *, answer, **columns):
    time.sleep(5e-4 * len(completions))
    return [float(c.endswith(f"#### {a}")) for a, c in zip(answer, completions)]
'''


pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Problems, and a user's module beside them."""
    folder = tmp_path_factory.mktemp("mine")
    write_problems(folder / "train.jsonl", 8)
    (folder / "graders_of_mine.py").write_text(USERS)
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    """Within that folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield folder
    sys.modules.pop("graders_of_mine", None)


def writing(made, writes=WRITES):
    """The run, but its rollouts write these whatever the policy says."""
    length = made.generation.response_length
    pad_id, end_id = made.generation.pad_id, made.tokenizer.stop_ids[0]

    def generate(params, step, drawn, sampling, seed, table_NDT):
        ids_P = jax.device_get(drawn.ids_P)
        texts = [write(int(i)) for i in ids_P for write in writes]
        response_BT = np.full((len(texts), length), pad_id, np.int32)
        length_B = np.zeros(len(texts), np.int32)
        for b, (said, ends) in enumerate(texts):
            tokens = made.tokenizer.encode(said) + [end_id] * ends
            response_BT[b, : len(tokens)], length_B[b] = tokens, len(tokens)
        mask_BT = np.arange(length) < length_B[:, None]
        zeros_BT = np.zeros_like(response_BT, np.float32)
        rows = jax.device_put(
            {
                "response_BT": response_BT,
                "mask_BT": mask_BT,
                "logprob_BT": zeros_BT,
                "entropy_BT": zeros_BT,
                "truncated_B": np.array([not ends for _, ends in texts]),
                **dict.fromkeys(
                    ("slot_steps_M", "steps_M", "row_steps_M"),
                    np.full(len(texts), length, np.int32),
                ),
            },
            drawn.prompt_PL.sharding,
        )
        return Rollout(prompt_PL=drawn.prompt_PL, position_PL=drawn.position_PL, **rows)

    programs = made.programs._replace(generate=generate)
    return dataclasses.replace(made, programs=programs)


def one_step(folder, workdir, reward, devices=1, prompts=4, **fields):
    """One step of the 8 problems in the loop: its metrics, dump, state, and the run."""
    config = configure(
        folder / "train.jsonl",
        num_steps=1,
        prompts_per_step=prompts,
        group_size=4,
        sampler__name="lim",
        rollout__max_response_length=16,
        reward=reward,
        checkpoint__every=1,
        # What is planted is not what the policy would have written.
        alarms__drift_stop=0.0,
        **fields,
    )
    made = writing(set_up(config, devices))
    train.train(made, config, workdir)
    with checkpoint.Checkpointer(workdir, read_only=True) as saver:
        state, _ = saver.restore(1, made.programs.state)
    (row,) = metrics.read_metrics(workdir)
    return row, list(rollout_dump.read_dump(workdir)), jax.device_get(state), made


@pytest.mark.slow
@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.soak), 4])
def test_samplers_see_raw_correctness_and_the_learner_limrs_reward(
    folder, tmp_path, devices
):
    row, dump, state, made = one_step(folder, tmp_path, "limr", devices)
    assert [r["reward"] for r in dump] == 4 * LIMR
    assert [r["reward/limr"] for r in dump] == 4 * LIMR
    assert [r["correct"] for r in dump] == 4 * RIGHT
    assert row["reward"] == row["reward/limr"] == np.mean(LIMR)
    assert row["pass_rate"] == 0.5
    # GRPO's advantages are those of LIMR's reward.
    advantage_PG = grpo.advantage(np.array([LIMR]), np.ones((1, 4), bool))
    assert row["advantage_abs_mean"] == pytest.approx(
        np.abs(advantage_PG).mean(), abs=1e-6
    )
    # LIM counted two right answers of four for each of the problems drawn.
    drawn = [made.train_set.problems.ids.index(r["id"]) for r in dump[::4]]
    expected_N = np.zeros(8)
    expected_N[drawn] = 1
    np.testing.assert_array_equal(state.sampler.cell_sum_2N[0], 2 * expected_N)
    np.testing.assert_array_equal(state.sampler.cell_count_2N[0], 4 * expected_N)


@pytest.mark.slow
def test_users_functions_from_the_current_folder(here, tmp_path):
    """Weights, a mean for each part by name, and None: invalid, not wrong."""
    module = "graders_of_mine"
    # 7 of 8: whatever the order, one of the problems whose rollouts write {3}.
    row, dump, state, _ = one_step(
        here, tmp_path, f"{module}.same, 0.5*{module}:shortness", prompts=7
    )
    same = np.array([r[f"reward/{module}.same"] for r in dump])
    short = [r[f"reward/{module}:shortness"] for r in dump]
    ungraded = np.array([x is None for x in short])
    assert 0 < ungraded.sum() < 4
    assert [r["valid"] for r in dump] == list(~ungraded)
    short = np.array([0.0 if x is None else x for x in short])
    expected = np.where(ungraded, 0.0, same + 0.5 * short)
    np.testing.assert_allclose([r["reward"] for r in dump], expected, rtol=1e-6)
    assert row[f"reward/{module}.same"] == pytest.approx(same.mean())
    assert row[f"reward/{module}:shortness"] == pytest.approx(short[~ungraded].mean())
    assert row["reward"] == pytest.approx(expected[~ungraded].mean())
    # The first function is what correctness comes from.
    assert row["pass_rate"] == pytest.approx(same[~ungraded].mean())
    assert row["invalid_share"] == pytest.approx(ungraded.mean())  # of 28, in fp32
    assert row["invalid/no_value"] == row["invalid_share"]
    reasons = np.where(ungraded, "no_value", "graded")
    assert [r["reason"] for r in dump] == reasons.tolist()
    assert state.sampler.cell_count_2N.sum() == 28 - ungraded.sum()


@pytest.mark.parametrize(
    "reward, complaint",
    [
        ("graders_of_mine.fast", "no attribute 'fast'"),
        ("graders_of_yours.same", "No module named 'graders_of_yours'"),
        ("maths", "unknown; give one of math, limr, judge or a dotted path"),
        ("math, x*limr", "reward weight 'x' of limr is no number"),
    ],
)
def test_a_reward_that_is_none_is_refused_before_anything(here, reward, complaint):
    with pytest.raises(InputError, match=complaint):
        set_up(configure(here / "train.jsonl", reward=reward))


@pytest.mark.slow
def test_a_list_of_another_length_names_the_function(here, tmp_path):
    with pytest.raises(InputError, match="graders_of_mine.few gave 1 values for 16"):
        one_step(here, tmp_path, "graders_of_mine.few")


@pytest.fixture
def events(monkeypatch):
    """What the loop starts and waits for, in order."""
    events = []

    def noted(name, function):
        def call(self, phase, *args):
            events.append((name, phase))
            return function(self, phase, *args)

        return call

    for name in ("start", "wait"):
        function = noted(name, getattr(train.Phases, name))
        monkeypatch.setattr(train.Phases, name, function)
    return events


@pytest.mark.slow
def test_devices_score_while_the_hosts_grade(folder, tmp_path, events):
    """The reference is queued before grading starts, and waited for after it."""
    row, *_ = one_step(folder, tmp_path, "math", kl__coefficient=0.1)
    order = [e for e in events if e[0] == "start" or e[1] in ("reference", "grade")]
    at = order.index
    assert at(("start", "reference")) < at(("start", "grade"))
    assert at(("start", "grade")) < at(("wait", "reference")) < at(("wait", "grade"))
    assert {"seconds_reference", "seconds_grade"} <= row.keys()


@pytest.mark.slow
def test_hosts_grade_a_part_while_the_devices_write_the_next(folder, tmp_path, events):
    """rollout.calls: another order of the same work, the same rewards and state."""
    fields = {"devices": 2, "kl__coefficient": 0.1}
    whole = one_step(folder, tmp_path / "whole", "limr", **fields)
    events.clear()
    parts = one_step(folder, tmp_path / "parts", "limr", rollout__calls=2, **fields)
    told = [e for e in events if e[1] in ("generate", "reference", "grade")]
    write, written = ("start", "generate"), ("wait", "generate")
    grade, score = ("start", "grade"), ("start", "reference")
    wait = lambda phase: [("wait", phase), ("start", phase)]  # noqa: E731
    assert told == [
        *(write, written, write, write, grade),
        *(written, write, score, grade, *wait("reference"), *wait("grade")),
    ]
    assert parts[1] == whole[1]  # the dump
    for name in ("reward", "reward/limr", "pass_rate", "advantage_abs_mean"):
        assert parts[0][name] == whole[0][name]
    for one, other in zip(jax.tree.leaves(parts[2]), jax.tree.leaves(whole[2])):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_hostile_text_in_the_loop(tmp_path, monkeypatch):
    """No tokenizer's text, so that NULs and surrogates are in it: a token a response.

    Nothing is right or raises, what breaks a limit is invalid, and the dump has it all.
    """
    problem = {"id": "five", "problem": "2+3=", "answer": "5"}
    (tmp_path / "train.jsonl").write_text(json.dumps(problem) + "\n")
    texts = [rf"\boxed{{{hostile}}}" for hostile in HOSTILE] + ["\\" * 1_000_000]
    texts.append(r"\boxed{5}")
    config = configure(
        tmp_path / "train.jsonl",
        num_steps=1,
        prompts_per_step=1,
        group_size=len(texts),
        reward="limr",
        grader__cpu_seconds=1.0,
        checkpoint__every=1,
        alarms__drift_stop=0.0,  # texts that no policy has written
    )
    made = writing(set_up(config), [lambda i, t=t: (t, True) for t in texts])
    monkeypatch.setattr(tokenizer.Tokenizer, "encode", lambda _, t: [texts.index(t)])
    monkeypatch.setattr(tokenizer.Tokenizer, "decode", lambda _, ids: texts[ids[0]])
    train.train(made, config, tmp_path / "run")
    (row,) = metrics.read_metrics(tmp_path / "run")
    dump = list(rollout_dump.read_dump(tmp_path / "run"))
    assert [r["response"] for r in dump] == texts
    assert [r["correct"] for r in dump] == [0] * (len(texts) - 1) + [1]
    assert all(r["reward"] in (0, -0.5, -1) for r in dump[:-1])
    assert dump[-1]["reward"] == 1
    assert row["invalid_share"] < 0.2
    # Each one's reason is a rule's or a limit's, and the metrics count the invalid.
    assert [r["reference"] for r in dump] == ["5"] * len(dump)
    invalid = [r["reason"] for r in dump if not r["valid"]]
    assert all(r["reason"] in REASONS for r in dump) and set(invalid) <= set(INVALID)
    for reason in INVALID:
        share = invalid.count(reason) / len(dump)
        assert row[f"invalid/{reason}"] == pytest.approx(share)
    assert row["seconds_grade"] < 60


@pytest.mark.soak
def test_seconds_that_grading_beside_generation_saves(here, tmp_path, capsys):
    """The main job in 4 calls, 0.5 ms a response to grade; each other step in turns."""
    words = ["--config", str(ROOT / "configs/tiny.py"), "--config.data.eval="]
    fields = {
        "num_steps": 42,
        "rollout.calls": 4,
        "reward": "graders_of_mine.slow",
        "evaluation.samples": 0,
    }
    words += [f"--config.{name}={value}" for name, value in fields.items()]
    config = config_lib.load(words)[0]
    made, asked = set_up(config), []

    def generate(*args):
        asked.append(1)
        written = made.programs.generate(*args)
        in_turns = (len(asked) - 1) // 4 % 2
        return jax.block_until_ready(written) if in_turns else written

    programs = made.programs._replace(generate=generate)
    train.train(dataclasses.replace(made, programs=programs), config, tmp_path)
    seconds = [row["seconds"] for row in metrics.read_metrics(tmp_path)][2:]
    beside, in_turns = np.median(seconds[::2]), np.median(seconds[1::2])
    with capsys.disabled():
        print(f"{beside:.3f} s beside, {in_turns:.3f} s in turns")
    assert beside < in_turns
