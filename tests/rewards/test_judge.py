"""A checkpoint as verifier: what it prefers, and how the loop asks it."""

import gc
import types
from functools import partial

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from rewards.test_host_grader import one_step
from tiny_policy import QWEN, quick
from tiny_run import MODEL, ROOT, configure, write_problems

from limr_jax.data import tokenizer
from limr_jax.data.boxed import boxed_answer
from limr_jax.errors import InputError
from limr_jax.evaluation import benchmarks
from limr_jax.models import hf_weights, transformer
from limr_jax.rewards import from_config, host, judge

pytestmark = pytest.mark.usefixtures("quick_compiler")
CHECKPOINT = ROOT / "limr_jax/assets/arithmetic"


def vivid_params(config):
    """Random ones whose last hidden state is mostly that of the last token."""
    params = quick(partial(transformer.init_params, config))(jax.random.key(0))
    params["embedder"]["embedding"] *= 20
    return params


@pytest.mark.slow
def test_prefers_is_the_comparison_of_two_probabilities_on_the_row_alone():
    params, random = vivid_params(QWEN), np.random.default_rng(0)
    length_B = np.repeat([2, 7, 11], 8)
    tokens_BS = random.integers(0, 40, (24, 12))
    how = {"config": QWEN, "dtype": jnp.float32}
    prefers = jax.jit(partial(judge.prefers, yes=(3, 4), no=(5,), **how))

    @jax.jit
    def probabilities(tokens_BS):
        position_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
        hidden_BSD = transformer.forward(params, tokens_BS, position_BS, **how)
        return jax.nn.softmax(transformer.unembed(params, hidden_BSD[:, -1], **how))

    said_B = prefers(params, tokens_BS, length_B)
    for length in (2, 7, 11):
        rows = length_B == length
        chance_BV = probabilities(tokens_BS[rows, :length])
        yes_B, no_B = chance_BV[:, 3] + chance_BV[:, 4], chance_BV[:, 5]
        np.testing.assert_array_equal(said_B[rows], yes_B > no_B)
    assert 4 < said_B.sum() < 20


def a_judge(**changes):
    how = {"max_length": 64, "rows": 3, "dtype": jnp.float32} | changes
    return judge.Judge(CHECKPOINT, **how)


@pytest.mark.slow
def test_questions_come_back_in_order_whatever_their_number_and_length(monkeypatch):
    """Short questions, whose last tokens differ."""
    monkeypatch.setattr(judge, "QUESTION", "{prompt}{reference}{answer}")
    made, one = a_judge(), a_judge(rows=1)
    for each in (made, one):
        each.__dict__["_params"] = vivid_params(made._config)
    answers = [f"{'7' * (k % 9)}{'abcdefgh+*-/=()'[k]}" for k in range(15)]
    answers[4], answers[9] = "x" * 100, "\ud800"
    asked = ["p"] * 15, answers, ["r"] * 15
    opinions = made(*asked)
    assert opinions[4] is None  # too long to be read
    assert {True, False} <= set(opinions)
    assert opinions == [one(*([x] for x in row))[0] for row in zip(*asked)]
    assert made([], [], []) == []


def test_a_real_checkpoint_answers_the_question_as_it_is_put():
    whole = a_judge(max_length=800)(["1+1="], ["2"], ["2"])
    assert whole in ([True], [False])


def test_what_a_policy_may_write_to_hold_the_judge_up(monkeypatch):
    """Text without an end is not split into tokens; noncharacters are as any other."""
    monkeypatch.setattr(judge, "QUESTION", "{prompt}{reference}{answer}")
    made, encoded = a_judge(), []
    encode = tokenizer.Tokenizer.encode_chats

    def noted(self, chats):
        encoded.extend(chat[0]["content"] for chat in chats)
        return encode(self, chats)

    monkeypatch.setattr(tokenizer.Tokenizer, "encode_chats", noted)
    marks = "".join(map(chr, range(0xFDD0, 0xFDF0)))
    answers = ["x" * 10**6, marks, "x" * (32 * 64 - 2), "7"]
    opinions = made(["p"] * 4, answers, ["r"] * 4)
    assert [opinion is None for opinion in opinions] == [True, True, True, False]
    assert encoded == ["pr" + x for x in ("\ufffd" * 32, *answers[2:])]


def same(prompts, answers, references):
    """A double: right if equal but for blanks; no opinion on what has a '?'."""
    return [
        None if "?" in a else a.replace(" ", "") == r.replace(" ", "")
        for a, r in zip(answers, references, strict=True)
    ]


PROOF = "By induction . Base case: n = 1 ."


def test_judge_as_the_reward_of_what_no_rule_can_check():
    grade = host.host_reward("judge", judge=same)
    responses = [PROOF, r"Hence \boxed{By induction. Base case: n=1.}", "No.", "?", " "]
    grades = grade(["p"] * 5, responses, [PROOF] * 5)
    np.testing.assert_array_equal(grades.correctness_B, [1, 1, 0, np.nan, 0])
    np.testing.assert_array_equal(grades.reward_B, [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(grades.valid_B, [True, True, True, False, True])
    assert grades.reasons == ("judge", "judge", "judge", "no opinion", "judge")


@pytest.mark.parametrize(
    "stored", [{}, {"int8": True}, {"dtype": jnp.bfloat16}], ids=str
)
def test_what_the_compile_report_is_told_is_what_is_asked(monkeypatch, stored):
    monkeypatch.setattr(judge, "QUESTION", "{prompt}{reference}{answer}")
    made, seen = a_judge(**stored), []
    _, program, shapes = made.program()

    def noted(*args):
        seen.append(args)
        return program(*args)

    monkeypatch.setattr(made, "_prefers", noted)
    made(["1+1="], ["2"], ["2"])
    for told, given in zip(*map(jax.tree.leaves, (shapes, seen[0])), strict=True):
        assert (told.shape, told.dtype) == (given.shape, given.dtype)
        assert told.sharding.is_equivalent_to(given.sharding, given.ndim)


def test_the_cascade_asks_each_wrong_answer_once_and_nothing_unreadable():
    asked = []

    def generous(prompts, answers, references):
        asked.extend(answers)
        return [True] * len(answers)

    grade = host.host_reward("limr", judge=generous)
    texts = ["12", "13", "13", "5\x00", "".join(map(str, range(900)))]
    responses = [rf"\boxed{{{t}}}" for t in texts] + ["no box"]
    grades = grade(["p"] * 6, responses, ["12"] * 6)
    grade.close()
    assert asked == ["13"]
    assert grades.correctness_B.tolist() == [1, 1, 1, 0, 0, 0]
    assert grades.reward_B.tolist() == [1, 1, 1, -0.5, -0.5, -1.0]
    assert grades.reasons[1] == "second verifier"


@pytest.mark.parametrize(
    ("spec", "judge", "complaint"),
    [
        ("judge", None, "give a checkpoint as judge.init"),
        ("math.sqrt", same, "judge.init is given, but reward=math.sqrt asks no judge"),
    ],
)
def test_a_judge_that_is_missing_or_never_asked_is_refused(spec, judge, complaint):
    with pytest.raises(InputError, match=complaint):
        host.host_reward(spec, judge=judge)


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """Their folder."""
    folder = tmp_path_factory.mktemp("problems")
    write_problems(folder / "train.jsonl", 8)
    return folder


FIELDS = {"judge__init": CHECKPOINT, "judge__max_length": 800}


@pytest.mark.slow
def test_in_the_loop_with_a_real_checkpoint(problems, tmp_path):
    row, dump, state, made = one_step(problems, tmp_path, "judge", devices=4, **FIELDS)
    opinions = [r["reward/judge"] for r in dump]
    assert set(opinions) <= {0.0, 1.0}
    assert row["pass_rate"] == row["reward"] == np.mean(opinions)
    assert row["invalid_share"] == 0
    assert state.sampler.cell_count_2N.sum() == len(dump)
    # The same opinions, asked directly.
    problems = made.train_set.problems
    references = dict(zip(problems.prompts, problems.answers, strict=True))
    asked = zip(*[
        (r["prompt"], boxed_answer(r["response"]) or r["response"],
         references[r["prompt"]])
        for r in dump
    ])  # fmt: skip
    assert opinions == a_judge(max_length=800)(*asked)


LORA = {
    "model__init": CHECKPOINT,
    "model__lora__rank": 2,
    # As its config.json says.
    **{f"model__{name}": 0 for name in MODEL},
}


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
def test_the_frozen_base_is_its_own_judge_and_is_loaded_once(
    problems, tmp_path, monkeypatch, int8
):
    """On a mesh over which it is sharded; its opinions are those of a copy of it."""
    loaded, load = [], hf_weights.load_params
    fields = {"model__base_dtype": "int8", "judge__dtype": "int8"} if int8 else {}

    def noted(directory, *args, **how):
        loaded.append(directory)
        return load(directory, *args, **how)

    monkeypatch.setattr(hf_weights, "load_params", noted)
    _, dump, _, made = one_step(
        problems,
        tmp_path,
        "judge",
        devices=4,
        mesh__fsdp=2,
        mesh__tensor=2,
        **FIELDS,
        **LORA,
        **fields,
    )
    assert loaded == [CHECKPOINT]
    base = made.grade._reward.judge
    assert base._params is made.load_base()
    copy, problems = a_judge(max_length=800, int8=int8), made.train_set.problems
    references = dict(zip(problems.prompts, problems.answers, strict=True))
    rows = [(r["prompt"], boxed_answer(r["response"]) or r["response"]) for r in dump]
    rows = list(zip(*[(p, a, references[p]) for p, a in rows], strict=True))
    assert copy(*rows) == base(*rows) == [r["reward/judge"] for r in dump]
    assert loaded == [CHECKPOINT] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "compute"),
    [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")],
)
def test_an_evaluation_holds_one_base_until_it_is_closed(problems, base, compute):
    config = configure(
        problems / "train.jsonl",
        reward="judge",
        judge__init=CHECKPOINT,
        judge__max_length=800,
        benchmarks__names=problems / "train.jsonl",
        model__dtype=compute,
        model__base_dtype=base,
        **LORA,
    )
    suite = benchmarks.set_up(config)
    judge, before = suite.tasks[0].grade._reward.judge, in_memory()
    params = suite.load_policy()[1]
    assert judge(["1 + 1 ="], ["2"], ["2"])[0] is not None
    assert in_memory() - before == nbytes(params)
    assert params["embedder"]["embedding"].dtype == compute
    del params
    suite.close()
    assert in_memory() == before


def in_memory() -> int:
    """Bytes on the devices of all arrays that are held."""
    gc.collect()
    return nbytes(jax.live_arrays())


def nbytes(arrays) -> int:
    """Bytes of their buffers: what was fetched has another array, with the same one."""
    shards = [s.data for x in jax.tree.leaves(arrays) for s in x.addressable_shards]
    buffers = {x.unsafe_buffer_pointer(): x.nbytes for x in shards}
    return sum(buffers.values())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, True),
        ({"model__lora__rank": 0}, False),
        ({"model__init": "random"}, False),
        ({"judge__init": str(CHECKPOINT / "..")}, False),
        ({"judge__init": str(CHECKPOINT / "../arithmetic")}, True),
        ({"judge__init": ""}, False),
        # Another model than its config.json's, or other numbers.
        ({"model__heads": 2}, False),
        ({"model__width": 96, "model__heads": 4}, True),
        ({"model__base_dtype": "int8"}, False),
        ({"judge__dtype": "int8"}, False),
        ({"judge__dtype": "int8", "model__base_dtype": "int8"}, True),
        ({"model__base_dtype": "bfloat16"}, False),
        ({"model__base_dtype": "bfloat16", "model__dtype": "bfloat16"}, True),
        ({"model__dtype": "bfloat16"}, True),
    ],
)
def test_which_judge_is_the_base(fields, said):
    overrides = LORA | {"judge__init": CHECKPOINT, "model__dtype": "float32"} | fields
    config = configure("absent.jsonl", **overrides)
    here = jax.local_devices()
    assert from_config.is_base(config, here) is said
    # What lies on the devices of two processes neither may ask by itself.
    there = types.SimpleNamespace(process_index=1, platform="cpu")
    assert from_config.is_base(config, [*here, there]) is False
