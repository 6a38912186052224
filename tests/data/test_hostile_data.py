"""Problem files, local copies and prepared sets made to hurt: one line, or read."""

import json
import os
import shutil

import numpy as np
import pytest
from tiny_run import ROOT, configure

from limr_jax import setup
from limr_jax.data.datasets import catalogue, tfds
from limr_jax.data.overlap import refuse_held_out
from limr_jax.data.problems import Problems, load_problems
from limr_jax.data.tokenizer import load_tokenizer
from limr_jax.errors import InputError
from limr_jax.evaluation import evaluator
from limr_jax.evaluation.accuracy import summary

GOOD = {"id": "a", "problem": "1+1=", "answer": "2"}
DEEP = '{"id": "a", "problem": "q", "answer": "1", "x": '


def lines(*rows) -> bytes:
    return b"\n".join(
        row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows
    )


def good(**changes) -> dict:
    return GOOD | changes


def loaded(path, content: bytes) -> Problems:
    path.write_bytes(content)
    return load_problems(str(path), data_dir="nowhere")


# --- One rule for a row of JSONL, of a .json array, and of a local copy ---------------

NUMBERS = {
    "27.0": "27",
    "27": "27",
    "-0.0": "0",
    "0.5": "0.5",
    "-2.50": "-2.5",
    "1e-7": "0.0000001",
    "1e3": "1000",
    "123456789012345678": "123456789012345678",
    '["2", 3, 0.5]': "2,3,0.5",
    '" 2 "': " 2 ",
}


def copied(tmp_path, name: str, content: bytes) -> list[dict]:
    """Rows of a local copy of AIME 2024."""
    path = tmp_path / name
    path.write_bytes(content)
    return catalogue.read_local(
        catalogue.local_file(tmp_path, "aime24", "test") or path, "aime24", "test"
    )


@pytest.mark.parametrize("written", NUMBERS)
def test_an_answer_is_the_same_text_in_every_file(tmp_path, written):
    row = f'{{"id": 7.0, "problem": "q", "answer": {written}}}'.encode()
    for name, content in (("a.jsonl", row), ("a.json", b"[" + row + b"]")):
        problems = loaded(tmp_path / name, content)
        assert (problems.ids, problems.answers) == (("7",), (NUMBERS[written],))
        (kept,) = copied(tmp_path, f"aime24{name[1:]}", content)
        assert (kept["id"], kept["answer"]) == ("aime24-7", NUMBERS[written])
        (tmp_path / f"aime24{name[1:]}").unlink()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("answer", "true", "answer.* is a JSON boolean, not text"),
        ("answer", "NaN", "answer.* is a JSON number, not text"),
        ("answer", "-Infinity", "answer.* is a JSON number, not text"),
        ("answer", "1e999", "answer.* is a JSON number, not text"),
        ("answer", '{"value": 2}', "answer.* is a JSON object, not text"),
        ("answer", "[[2], null]", "answer.*: an item is a JSON null, not text"),
        ("answer", r'"\ud800"', "holds a lone surrogate"),
        ("id", "1.5", "the field 'id' is a JSON number, not text"),
        ("id", "true", "the field 'id' is a JSON boolean, not text"),
        ("id", "NaN", "the field 'id' is a JSON number, not text"),
        ("id", "[1]", "the field 'id' is a JSON array, not text"),
        ("id", r'"\udfff"', "the field 'id' holds a lone surrogate at character 0"),
        ("problem", r'"a\ud800"', "'problem' holds a lone surrogate at character 1"),
        ("level", r'"\ud800"', "'level' holds a lone surrogate at character 0"),
        ("level", "true", "the level true is none that figures can be given by"),
        ("level", "NaN", "the level NaN is none that figures can be given by"),
        ("level", "[1]", r"the level \[1\] is none that figures can be given by"),
        ("level", '{"a": 1}', 'the level {"a": 1} is none'),
        ("source", r'["a", {"b": "\ud800"}]', "'source' holds a lone surrogate at"),
        ("source", r'{"\ud800": 1}', "'source' holds a lone surrogate at character 2"),
        (r"\ud800", "1", "the name of a field holds a lone surrogate at character 0"),
    ],
)
def test_what_no_row_may_hold_wherever_it_is_from(tmp_path, field, value, said):
    row = json.dumps(GOOD)[:-1] + f', "{field}": {value}}}'
    (tmp_path / "copies").mkdir()
    for name, content in (("a.jsonl", row), ("a.json", f"[{row}]")):
        with pytest.raises(InputError, match=said) as own:
            loaded(tmp_path / name, content.encode())
        with pytest.raises(InputError, match=said) as copy:
            copied(tmp_path / "copies", f"aime24{name[1:]}", content.encode())
        (tmp_path / "copies" / f"aime24{name[1:]}").unlink()
        for caught in (own, copy):
            assert str(caught.value).isprintable()
            assert str(caught.value).startswith(str(tmp_path))


def test_json_is_an_array_an_object_or_lines(tmp_path):
    rows = [good(), good(id="b")]
    for content in (
        json.dumps(rows).encode(),
        json.dumps(rows, indent=1).encode(),
        b"\xef\xbb\xbf" + json.dumps(rows).encode(),
        lines(*rows),
        lines(*rows) + b"\n\n",
    ):
        assert loaded(tmp_path / "set.json", content).ids == ("a", "b")
    assert loaded(
        tmp_path / "set.json", json.dumps(rows[0], indent=1).encode()
    ).ids == ("a",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", ": not JSON (Expecting value: line 1 column 1 (char 0)); fetch"),
        (b"[", ": not JSON (Expecting value: line 1 column 2 (char 1)); fetch"),
        (b"[]", ": holds no problem; give a set with at least one"),
        (b"3", " row 1: a JSON number, not an object; write an array of JSON objects"),
        (b'[{"id": 1}, 2]', " row 2: a JSON number, not an object; write an array of"),
        (b'["\xff"]', ": not UTF-8 (byte 0xff at 2); save the file as UTF-8"),
        (b"[" * 10**5, ": not JSON ("),
        (b'{"id": 1}\n{"id":', ":2: not JSON (Expecting value"),
    ],
)
def test_json_that_is_none_of_them(tmp_path, content, said):
    path = tmp_path / "set.json"
    with pytest.raises(InputError) as caught:
        loaded(path, content)
    assert str(caught.value).startswith(f"{path}{said}")
    assert "\n" not in str(caught.value)


def test_a_reference_stands_in_for_an_empty_answer(tmp_path):
    for answer in ("", None):
        row = good(answer=answer, reference="clear")
        assert loaded(tmp_path / "a.jsonl", lines(row)).answers == ("clear",)
        (kept,) = copied(tmp_path, "aime24.jsonl", lines(row))
        assert kept["answer"] == "clear"


@pytest.mark.parametrize("reward", ["token", "math", "0.5*my.own, limr", "judge"])
def test_an_empty_reference_is_not_trained_on(tmp_path, reward):
    """Nor evaluated on: an empty response would be right, or none could be."""
    rows = [good(id=str(i), problem=f"{i}=", answer=" " * (i % 2)) for i in range(3)]
    empty = loaded(tmp_path / "empty.jsonl", lines(*rows, good(id="3"))).source
    whole = loaded(
        tmp_path / "whole.jsonl", lines(*(good(id=str(i)) for i in range(4)))
    )
    tokenizer = load_tokenizer(ROOT / "limr_jax/assets/arithmetic")
    for sets in ({"data__train": empty}, {"data__eval": empty}):
        fields = {"data__allow_overlap": True, "reward": reward} | sets
        config = configure(whole.source, **fields)
        with pytest.raises(InputError) as caught:
            setup.load_sets(config, tokenizer)
        assert str(caught.value) == (
            f"3 of 4 problems of {empty} have no reference answer, first '0'; add them "
            "or leave those out"
        )
    own = configure(empty, data__allow_overlap=True, reward="my.own")
    assert len(setup.load_sets(own, tokenizer)[0]) == 4  # which may need no reference


@pytest.mark.parametrize("role", ["assistant", "system"])
def test_a_chat_ends_with_the_users_message(tmp_path, role):
    chat = [{"role": "user", "content": "1+1="}, {"role": role, "content": "It is"}]
    row = {"id": "b", "prompt": chat, "answer": "2"}
    with pytest.raises(InputError) as caught:
        loaded(tmp_path / "a.jsonl", lines(GOOD, row))
    assert str(caught.value) == (
        f"{tmp_path}/a.jsonl:2: 'prompt' ends with the {role}'s message, which no "
        "answer follows; end it with the user's"
    )


def test_levels_of_one_name_are_one_level(tmp_path):
    """They were two keys of one name in the figures, the later over the earlier."""
    levels = [1, "1", 2, "2", "easy", None, 2.5, "2.5"]
    rows = [good(id=str(i), level=level) for i, level in enumerate(levels)]
    problems = loaded(tmp_path / "a.jsonl", lines(*rows))
    assert problems.columns["level"] == (1, 1, 2, 2, "easy", None, 2.5, 2.5)
    one_Nk = np.ones((8, 1), np.float32)
    told = summary(
        evaluator.Evaluation(
            correct_Nk=one_Nk * (np.arange(8) == 1)[:, None],
            valid_Nk=one_Nk > 0,
            well_formed_Nk=one_Nk > 0,
            truncated_Nk=one_Nk == 0,
            length_Nk=one_Nk.astype(np.int32),
            response_NkT=np.zeros((8, 1, 0), np.int32),
            reason_Nk=np.zeros((8, 1), np.int8),
        ),
        problems.columns["level"],
    )
    assert told["accuracy_level_1"] == 0.5
    assert told["accuracy_level_2"] == 0


# --- Local copies of public sets ----------------------------------------------------


def row(**changes) -> bytes:
    return json.dumps(
        {"id": 60, "problem": "How many?", "answer": "7"} | changes
    ).encode()


COPIES = {
    "an empty file": (".jsonl", b"", "holds no problem of aime24:test; fetch it again"),
    "an empty array": (".json", b"[]", "holds no problem of aime24:test"),
    "an empty table": (".csv", b"", "holds no problem of aime24:test"),
    "no Parquet": (".parquet", b"PAR1", ""),
    "half a line": (".jsonl", row()[:20], ":1: not JSON"),
    "a page of the web": (".jsonl", b"<html>404</html>", ":1: not JSON"),
    "not UTF-8": (".jsonl", b'{"problem": "\xe9"}', ":1: not UTF-8 (byte 0xe9 at 13)"),
    "deep": (".json", b"[" * 10**5, ": not JSON"),
    "deep in a column": (
        ".jsonl",
        row()[:-1] + b', "x": ' + b"[" * 10**5 + b"}",
        ":1: not JSON",
    ),
    "a number": (".json", b"3", "row 1: a JSON number, not an object"),
    "rows that are texts": (".json", b'["a"]', "row 1: a JSON string, not an object"),
    "no problem": (".jsonl", row(problem=None), ":1: no problem in problem, question"),
    "an empty problem": (".jsonl", row(problem=""), ":1: no problem in problem"),
    "a problem that is a list": (".jsonl", row(problem=["q"]), ":1: no problem in"),
    "one id twice": (
        ".jsonl",
        row() + b"\n" + row(problem="And then?"),
        ":2: the id 'aime24-60' is also that of ",
    ),
    "a level of many digits": (".jsonl", row(level="9" * 5000), None),
    "cells too many": (".csv", b"id,problem,answer\n1,q,2,3\n", " row 1: not as many"),
    "cells too few": (".csv", b"id,problem,answer\n1,q\n", " row 1: not as many cells"),
    "a quote that is not closed": (".csv", b'id,problem,answer\n1,"q,2\n', ": not CSV"),
    "a cell without end": (
        ".csv",
        b"id,problem,answer\n1," + b"q" * 2 * 10**5 + b",2\n",
        ": not CSV in UTF-8 (field larger than field limit",
    ),
    "a table not UTF-8": (
        ".csv",
        b"id,problem,answer\n1,\xe9,2\n",
        ": not CSV in UTF-8",
    ),
    "a folder of nothing": (
        "",
        None,
        ": no file of .jsonl, .json, .csv, .parquet",
    ),
    "a folder": (".jsonl", None, ": no file of .jsonl, .json, .csv, .parquet below it"),
    "a link to nothing": (".jsonl", "absent", ": no file that can be read"),
    "a link to itself": (".jsonl", "aime24.jsonl", ": no file that can be read"),
    "a pipe": (".jsonl", os.mkfifo, ": no file that can be read; fetch it again"),
}


def place(path, content):
    if content is None:
        path.mkdir()
    elif isinstance(content, str):
        path.symlink_to(content)
    elif callable(content):
        content(path)
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_public_sets(tmp_path, name):
    suffix, content, said = COPIES[name]
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="needs pyarrow: extra [parquet]")
    place(tmp_path / f"aime24{suffix}", content)
    file = catalogue.local_file(tmp_path, "aime24", "test")
    if said is None:
        assert catalogue.read_local(file, "aime24", "test")
        return
    with pytest.raises(InputError) as caught:
        catalogue.read_local(file, "aime24", "test")
    line = str(caught.value)
    assert line.startswith(str(file)) and said in line
    assert line.isprintable() and len(line) < 600


@pytest.mark.parametrize("name", ["half a line", "a link to nothing", "one id twice"])
def test_a_broken_evaluation_set_does_not_stop_training(tmp_path, capsys, name):
    """It is said once, in a line that names it; the other sets are compared."""
    suffix, content, _ = COPIES[name]
    place(tmp_path / f"aime24{suffix}", content)
    (tmp_path / "aime25.jsonl").write_bytes(row(problem="1 + 1 ="))
    where = {"data_dir": tmp_path / "cache", "manual_dir": tmp_path}
    train = loaded(tmp_path / "train.jsonl", lines(good()))
    with pytest.raises(InputError, match="1 of 1 problems .* are in aime25:test"):
        refuse_held_out(train, **where)
    said = capsys.readouterr().err
    assert said.startswith(f"not compared with aime24:test: {tmp_path}/aime24{suffix}")
    assert said.count("not compared with") == 1
    with pytest.raises(InputError):  # named as the set to evaluate on, it must be there
        load_problems("aime24:test", **where)


# --- Prepared sets --------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """AIME 2024 of two rows, prepared."""
    root = tmp_path_factory.mktemp("prepared")
    (root / "manual").mkdir()
    copy = row() + b"\n" + row(id=61, problem="And now?")
    (root / "manual" / "aime24.jsonl").write_bytes(copy)
    load_problems("aime24:test", data_dir=root)
    return root


@pytest.mark.slow
def test_a_prepared_set_is_only_read(cache, monkeypatch):
    """In a folder that nobody may write to there is no lock to be had."""

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tfds.fcntl, "flock", refuse)
    assert len(load_problems("aime24:test", data_dir=cache)) == 2
    with pytest.raises(InputError, match="aime25 cannot be prepared there .*denied"):
        load_problems("aime25:test", data_dir=cache)


def broken(name, content):
    def act(folder):
        (file,) = folder.glob(name)
        file.unlink()
        if content is not None:
            file.write_bytes(content)

    return act


PREPARED = {
    "no information": broken("dataset_info.json", None),
    "half of the information": broken("dataset_info.json", b'{"name": "ai'),
    "information of no kind": broken("dataset_info.json", b"[]"),
    "information of nothing": broken("dataset_info.json", b"{}"),
    "metadata of no kind": broken("metadata.json", b"[1]"),
    "half of the metadata": broken("metadata.json", b'{"test"'),
    "no records": broken("*array_record*", None),
    "empty records": broken("*array_record*", b""),
    "records of zeros": broken("*array_record*", b"\0" * 70_000),
    "a text for records": broken("*array_record*", b"no records at all"),
}


@pytest.mark.parametrize("name", PREPARED)
def test_prepared_sets_that_are_broken(cache, tmp_path, name):
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    (info,) = tmp_path.glob("aime24/*/dataset_info.json")
    PREPARED[name](info.parent)
    with pytest.raises(InputError) as caught:
        load_problems("aime24:test", data_dir=tmp_path)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path}/aime24") and line.isprintable()
    assert "the prepared set cannot be read (" in line
    assert line.endswith("; remove that folder and it is made again")
    shutil.rmtree(tmp_path / "aime24")
    assert len(load_problems("aime24:test", data_dir=tmp_path)) == 2
