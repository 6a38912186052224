"""Reading problems, tokenizing them, and the set as device arrays."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limr_jax import sharding
from limr_jax.data import tokenizer
from limr_jax.data.datasets import tfds
from limr_jax.data.problems import load_problems, tokenize
from limr_jax.data.prompts import gather, left_pad, put_prompts
from limr_jax.errors import InputError

ROWS = [
    {"id": f"p{i}", "problem": f"{i}+{i}=", "answer": str(2 * i), "level": i % 3}
    for i in range(10)
]

TOY = '''"""A builder as the package's own are written."""
import time

import numpy as np
import tensorflow_datasets as tfds


class Builder(tfds.core.GeneratorBasedBuilder):
    """Seven problems, slowly."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        level = tfds.features.Scalar(dtype=np.int32)
        features = {"id": text, "problem": text, "answer": text, "level": level}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(7), "eval": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            time.sleep(0.05)
            yield i, {"id": f"ü{i}", "problem": f"{i}²=", "answer": "x", "level": i}
'''


@pytest.fixture
def write(tmp_path):
    def write(rows, name="set.jsonl"):
        path = tmp_path / name
        lines = (r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows)
        path.write_bytes(b"\n".join(lines))
        return str(path)

    return write


@pytest.fixture(scope="module")
def toysets(tmp_path_factory):
    """A package of data sets with the one set 'toy', and where it lies."""
    root = tmp_path_factory.mktemp("root")
    (root / "toysets" / "toy").mkdir(parents=True)
    (root / "toysets" / "__init__.py").write_text('"""Toys."""\n')
    (root / "toysets" / "toy" / "__init__.py").write_text('"""Toy."""\n')
    (root / "toysets" / "toy" / "toy_dataset_builder.py").write_text(TOY)
    sys.path.insert(0, str(root))
    yield root
    sys.path.remove(str(root))


@pytest.fixture
def toy(toysets, monkeypatch, tmp_path):
    """The toys instead of limr_jax/datasets."""
    monkeypatch.setattr(tfds, "PACKAGE", "toysets")
    return tmp_path


@pytest.fixture(scope="module")
def baby(shared):
    return tokenizer.load_tokenizer(shared / "models" / "babyllama")


def load(spec):
    return load_problems(spec, data_dir="nowhere")


def test_rows_are_kept_in_order_with_their_columns(write):
    problems = load(write(ROWS))
    assert problems.ids == tuple(row["id"] for row in ROWS)
    assert problems.prompts[3] == "3+3="
    assert problems.answers[3] == "6"
    assert problems.columns == {"level": (0, 1, 2, 0, 1, 2, 0, 1, 2, 0)}
    assert len(problems) == 10


def test_other_ways_to_write_a_row(write):
    chat = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "1+1"},
    ]
    problems = load(
        write(
            [
                b'\xef\xbb\xbf{"id": 7, "problem": "a", "answer": 12}',
                b"  ",
                {"id": "b", "prompt": chat, "answer": "2"},
                {"id": "c", "problem": "prove", "reference": "clear"},
                # Beyond the largest float.
                {"id": "d", "problem": "10^320?", "answer": 10**320},
                {"id": "e", "problem": "and 1?", "answer": [10**320, 1]},
            ]
        )
    )
    assert problems.ids == ("7", "b", "c", "d", "e")
    assert problems.prompts[:3] == ("a", "be brief\n\n1+1", "prove")
    assert problems.messages[:3] == (None, tuple(chat), None)
    assert problems.answers[:3] == ("12", "2", "clear")
    assert problems.answers[3:] == (str(10**320), f"{10**320},1")
    assert problems.columns["reference"] == (None, None, "clear", None, None)


def test_which_field_is_the_prompt_is_asked_of_each_row(write):
    """A column is what stands beside it, whichever row comes first."""
    rows = [
        {"id": "a", "problem": "pa", "answer": "1"},
        {"id": "b", "prompt": "pb", "answer": "2"},
        {"id": "c", "prompt": "pc", "problem": "as published", "answer": "3"},
    ]
    for order in (rows, rows[::-1]):
        problems = load(write(order))
        assert problems.prompts == tuple(f"p{row['id']}" for row in order)
        assert problems.columns.keys() == {"problem"}
        column = dict(zip(problems.ids, problems.columns["problem"]))
        assert column == {"a": None, "b": None, "c": "as published"}
    assert load(write(rows[:2])).columns == {}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("[2:4]", ["p2", "p3"]),
        ("[:2]", ["p0", "p1"]),
        ("[8:]", ["p8", "p9"]),
        ("[-1:]", ["p9"]),
        ("[:-8]", ["p0", "p1"]),
        ("[ 0 : 99 : 5 ]", ["p0", "p5"]),
        ("[:]", [f"p{i}" for i in range(10)]),
    ],
)
def test_slices_are_pythons(write, written, expected):
    assert list(load(write(ROWS) + written).ids) == expected


@pytest.mark.parametrize("written", ["[3]", "[a:b]", "[1:2:3:4]", "[::0]", "[:10%]"])
def test_a_bad_slice(write, written):
    with pytest.raises(InputError, match=r"is no slice; write \[start:stop\]"):
        load(write(ROWS) + written)


def test_a_file_may_have_brackets_in_its_name(write):
    assert len(load(write(ROWS, "a[1:2].jsonl"))) == 10


GOOD = {"id": "a", "problem": "b", "answer": "c"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "holds no problem"),
        ([b"", b"  "], "holds no problem"),
        ([GOOD, b'{"id": "\xff"}'], "set.jsonl:2: not UTF-8"),
        ([GOOD, b"{'id': 1}"], "set.jsonl:2: not JSON"),
        ([GOOD, b'{"id": "b"'], "set.jsonl:2: not JSON"),
        ([b"[" * 100_000], "set.jsonl:1: not JSON"),
        ([b"1" * 5000], "set.jsonl:1: not JSON"),
        ([GOOD, [1]], "set.jsonl:2: a JSON array, not an object"),
        ([GOOD, b"null"], "set.jsonl:2: a JSON null, not an object"),
        ([{"problem": "b", "answer": "c"}], "set.jsonl:1: the field 'id' is missing"),
        ([{"id": "a", "answer": "c"}], ":1: the field 'problem' is missing"),
        ([{"id": "a", "problem": "b"}], ":1: the field 'answer' is missing"),
        ([GOOD | {"answer": None}], "the field 'answer' is a JSON null, not text"),
        ([GOOD | {"answer": True}], "the field 'answer' is a JSON boolean, not text"),
        ([GOOD | {"id": 1.5}], "the field 'id' is a JSON number, not text"),
        ([GOOD | {"problem": {}}], "the field 'problem' is a JSON object, not text"),
        ([GOOD | {"problem": ""}], "the field 'problem' is empty"),
        ([GOOD | {"level": 10**320}], "the level 1000+… is none that"),
        ([GOOD | {"problem": "\ud800"}], "holds a lone surrogate at character 0"),
        ([GOOD | {"prompt": []}], "'prompt' has no messages"),
        ([GOOD | {"prompt": ["hi"]}], "a message of 'prompt' is not an object"),
        ([GOOD | {"prompt": [{"role": "user"}]}], "not an object of just role and"),
        (
            [GOOD | {"prompt": [{"role": "user", "content": None}]}],
            "a message's content is a JSON null",
        ),
        (
            [GOOD, GOOD | {"id": "b"}, GOOD],
            "set.jsonl:3: the id 'a' is also that of .*set.jsonl:1",
        ),
    ],
)
def test_bad_rows(write, rows, said):
    with pytest.raises(InputError, match=said) as error:
        load(write(rows))
    assert "\n" not in str(error.value)


def test_an_empty_slice(write):
    with pytest.raises(InputError, match="leaves none of 10 problems"):
        load(write(ROWS) + "[20:]")


def test_bad_paths(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load(str(tmp_path / "absent.jsonl"))
    with pytest.raises(InputError, match="a directory"):
        load(str(tmp_path))


def test_rows_are_read_back_the_same(write):
    chat = [{"role": "user", "content": "2+2="}]
    rows = [*ROWS, {"id": "c", "problem": chat, "reference": "4", "level": None}]
    problems = load_problems(write(rows), data_dir="/nowhere")
    again = [problems.row(i) for i in range(len(problems))]
    again = load_problems(write(again, "again.jsonl"), data_dir="/nowhere")
    assert again.digest == problems.digest
    assert again.columns["level"] == problems.columns["level"]
    assert again.messages == problems.messages


def test_the_digest_changes_with_ids_prompts_answers_and_order(write):
    digests = {load(write(ROWS)).digest}
    assert load(write(ROWS)).digest in digests
    assert load(write([row | {"level": 9} for row in ROWS])).digest in digests
    chat = [{"role": "user", "content": ROWS[0]["problem"]}]
    for rows in (
        ROWS[:9],
        ROWS[::-1],
        [ROWS[0] | {"answer": "1"}, *ROWS[1:]],
        [ROWS[0] | {"problem": "1"}, *ROWS[1:]],
        [ROWS[0] | {"id": "1"}, *ROWS[1:]],
        [ROWS[0] | {"prompt": chat}, *ROWS[1:]],
    ):
        assert (digest := load(write(rows)).digest) not in digests
        digests.add(digest)


def test_what_samplers_and_rewards_read_is_in_a_digest_of_its_own(write):
    """A level that changed is another run; it asks a benchmark nothing else."""
    whole = {load(write(ROWS)).digest_with_columns for _ in range(2)}
    assert len(whole) == 1
    for rows in (
        [row | {"level": 9} for row in ROWS],
        [row | {"difficulty": 9} for row in ROWS],
        [ROWS[0] | {"answer": "1"}, *ROWS[1:]],
    ):
        assert load(write(rows)).digest_with_columns not in whole


def test_builders_are_prepared_once_and_read_in_order(toy, capfd):
    problems = load_problems("toy:train[1:]", data_dir=toy / "cache")
    assert problems.ids == tuple(f"ü{i}" for i in range(1, 7))
    assert problems.prompts[0] == "1²="
    assert problems.columns == {"level": (1, 2, 3, 4, 5, 6)}
    (file,) = (toy / "cache").rglob("*train*.array_record*")
    written = file.stat().st_mtime_ns
    again = load_problems("toy:train[1:]", data_dir=toy / "cache")
    assert again == problems
    assert file.stat().st_mtime_ns == written
    assert capfd.readouterr() == ("", "")


def test_names_that_are_not_there(toy):
    with pytest.raises(InputError, match="no data set .* 'toi', the nearest is 'toy'"):
        load_problems("toi:train", data_dir=toy / "cache")
    with pytest.raises(InputError, match="no split 'test'; give .*toy:train, toy:eval"):
        load_problems("toy:test", data_dir=toy / "cache")
    with pytest.raises(InputError, match="no split ''"):
        load_problems("toy", data_dir=toy / "cache")


def test_a_cache_that_cannot_be_written(toy):
    (toy / "file").write_text("")
    with pytest.raises(InputError, match="cannot be prepared there"):
        load_problems("toy:train", data_dir=toy / "file" / "cache")


def test_a_damaged_cache(toy):
    load_problems("toy:train", data_dir=toy / "cache")
    for file in (toy / "cache").rglob("*.array_record*"):
        file.write_bytes(b"garbage")
    with pytest.raises(InputError, match="remove that folder"):
        load_problems("toy:train", data_dir=toy / "cache")


@pytest.mark.slow
def test_two_processes_prepare_the_same_set_at_once(toysets, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(toysets)!r})\n"
        "from limr_jax.data import problems\n"
        "from limr_jax.data.datasets import tfds\n"
        "tfds.PACKAGE = 'toysets'\n"
        f"cache = {str(tmp_path / 'cache')!r}\n"
        "p = problems.load_problems('toy:train', data_dir=cache)\n"
        "print(p.digest)\n"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1]
    assert len(said[0]) == 65


def test_tokens_are_padded_on_the_right(write, baby):
    problems = load(write([GOOD | {"problem": "one two"}, GOOD | {"id": "b"}]))
    tokenized = tokenize(problems, baby, max_prompt_length=64)
    prompts = [[1, *baby.encode("one two")], [1, *baby.encode("b")]]
    assert tokenized.prompt_length_N.tolist() == [len(prompts[0]), 3]
    assert tokenized.prompt_NL.shape == (2, 16)
    for row, prompt in zip(tokenized.prompt_NL, prompts, strict=True):
        assert row.tolist() == prompt + [baby.pad_id] * (16 - len(prompt))
    assert tokenized.answer_NA.tolist() == [baby.encode("c", continued=True)] * 2
    assert tokenized.answer_length_N.tolist() == [1, 1]
    assert tokenized.left_out == ()


@pytest.mark.slow
def test_messages_go_into_the_template_as_they_are(write, shared):
    qwen = tokenizer.load_tokenizer(shared / "tokenizers" / "qwen2")
    chat = [{"role": "user", "content": "1+1"}]
    problems = load(write([GOOD, GOOD | {"id": "b", "prompt": chat}]))
    tokenized = tokenize(problems, qwen, max_prompt_length=99)
    rows = [
        qwen.decode(row[:length], special=True)
        for row, length in zip(
            tokenized.prompt_NL, tokenized.prompt_length_N, strict=True
        )
    ]
    assert rows[0].startswith("<|im_start|>system\nPlease reason step by step")
    assert rows[1] == "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n"


def test_what_is_too_long_is_left_out_or_refused_never_cut(write, baby):
    rows = [
        GOOD,
        GOOD | {"id": "long", "problem": "one two three"},
    ]
    problems = load(write(rows))
    tokenized = tokenize(problems, baby, max_prompt_length=10)
    assert tokenized.left_out == ("long",)
    assert tokenized.problems.ids == ("a",)
    with pytest.raises(InputError, match=r"1 of 2 problems .* first long; raise"):
        tokenize(problems, baby, max_prompt_length=10, too_long="refuse")
    with pytest.raises(InputError, match="2 of 2 problems"):
        tokenize(problems, baby, max_prompt_length=1)
    with pytest.raises(InputError, match="give 'leave_out' or 'refuse'"):
        tokenize(problems, baby, max_prompt_length=10, too_long="cut")


def test_a_prompt_at_the_limit_fits(write, baby):
    problems = load(write([GOOD]))
    assert tokenize(problems, baby, max_prompt_length=3).prompt_NL.shape == (1, 3)
    with pytest.raises(InputError, match="1 of 1"):
        tokenize(problems, baby, max_prompt_length=2)


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("axes", [(1, 1, 1), (8, 1, 1), (2, 2, 2)])
def test_the_set_lies_spread_and_is_gathered_by_ids(write, baby, axes):
    rows = [row | {"answer": row["answer"] + "x" * i} for i, row in enumerate(ROWS)]
    tokenized = tokenize(load(write(rows)), baby, max_prompt_length=32)
    size = axes[0] * axes[1] * axes[2]
    mesh = sharding.make_mesh(*axes, devices=jax.devices()[:size])
    prompts = put_prompts(tokenized, mesh)
    rows_total = -(-10 // size) * size
    shard = prompts.prompt_NL.addressable_shards[0].data
    assert shard.shape == (rows_total // size, tokenized.prompt_NL.shape[1])
    assert prompts.prompt_length_N[10:].tolist() == [0] * (rows_total - 10)
    id_P = jnp.array([9, 0, 4, 4, 7])
    chosen = jax.jit(gather)(prompts, id_P)
    for field in ("prompt_NL", "prompt_length_N", "answer_NA", "answer_length_N"):
        expected = getattr(tokenized, field)[np.asarray(id_P)]
        np.testing.assert_array_equal(getattr(chosen, field), expected)
    # Only the chosen rows move: no device gets to hold the whole set.
    program = jax.jit(gather).lower(prompts, id_P).compile().as_text()
    assert "all-gather" not in program
    assert ("all-reduce" in program) == (size > 1)


def test_left_padded_prompts_end_at_the_last_column():
    prompt_PL = jnp.array([[5, 6, 0, 0], [7, 8, 9, 4], [0, 0, 0, 0]])
    tokens_PL, position_PL = jax.jit(left_pad)(prompt_PL, jnp.array([2, 4, 0]))
    assert tokens_PL.tolist() == [[0, 0, 5, 6], [7, 8, 9, 4], [0, 0, 0, 0]]
    assert position_PL.tolist() == [[-1, -1, 0, 1], [0, 1, 2, 3], [-1, -1, -1, -1]]


@pytest.mark.slow
def test_every_problem_of_the_papers_set_fits_its_limits(shared):
    qwen = tokenizer.load_tokenizer(shared / "tokenizers" / "qwen2")
    problems = load(str(shared / "data" / "math_lvl3to5.jsonl"))
    assert len(problems) == 8523
    tokenized = tokenize(problems, qwen, max_prompt_length=1024)
    assert len(tokenized) + len(tokenized.left_out) == 8523
    assert len(tokenized.left_out) == 8
