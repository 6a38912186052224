"""Training sets of the embedded task made to order: `arithmetic:train-2048-hard50`."""

import itertools

import pytest

from limr_jax.data import problems as problems_lib
from limr_jax.data.datasets.arithmetic import expressions, mixture
from limr_jax.errors import InputError


def rows(split: str) -> list[dict]:
    return list(mixture.problems(split, mixture.parse(split), seed=0))


def value(text: str) -> int:
    """Python's own arithmetic in the place of the package's."""
    return eval(text.removesuffix("="))


def test_a_name_says_how_many_of_each_kind():
    all_rows = rows("train-400-hard25-solved30-skew5-wrong20")
    counts = {
        kind: sum(row["kind"] == kind for row in all_rows)
        for kind in ("hard", "solved", "skew", "usual")
    }
    assert counts == {"hard": 100, "solved": 120, "skew": 20, "usual": 160}
    texts = [row["problem"] for row in all_rows]
    assert len(set(texts)) == 400
    assert {expressions.split_of(text[:-1]) for text in texts} == {"train"}
    assert {row["level"] for row in all_rows if row["kind"] == "hard"} == {6, 7, 8}
    # In a solved problem no habit shows, so that a sloppy writer is right as well.
    assert {row["traps"] for row in all_rows if row["kind"] == "solved"} == {""}
    templates = {
        "".join("n" if x.isdigit() else x for x in row["problem"])
        for row in all_rows
        if row["kind"] == "skew"
    }
    assert templates == {"nn*n+nn=", "nn*n-nn="}


def test_references_are_right_but_for_the_share_that_is_wrong():
    all_rows = rows("train-600-hard10-solved20-wrong20")
    for row in all_rows:
        assert (int(row["answer"]) != value(row["problem"])) == row["wrong"], row
    # 600 draws at .2: the mean and 3.5 standard deviations.
    assert 86 <= sum(row["wrong"] for row in all_rows) <= 154
    # A habit's answer where one shows, and the smallest of the habits' rates.
    carry = next(x for x in all_rows if x["wrong"] and x["traps"] == "carry")
    assert value(carry["problem"]) - int(carry["answer"]) in (10, 100, 110)
    # What is wrong at 5 % is wrong at 20 % too, and the rest is the same set.
    few = rows("train-600-hard10-solved20-wrong5")
    assert all(b["wrong"] for a, b in zip(few, all_rows) if a["wrong"])
    assert [x["problem"] for x in few] == [x["problem"] for x in all_rows]


def test_a_larger_count_only_appends():
    few, many = rows("train-50-hard50"), rows("train-120-hard50")
    texts = [[row["problem"] for row in some] for some in (few, many)]
    assert texts[1][:50] == texts[0]


def test_a_level_that_is_used_up_leaves_its_turn(monkeypatch):
    # Level 1 has some 1,600 expressions in train; more than that of each level.
    monkeypatch.setattr(expressions, "LEVELS", (1, 2))
    monkeypatch.setattr(expressions, "solve", lambda *_: ("", 0))  # seconds
    levels = [row["level"] for row in rows("train-3600")]
    assert 1500 < levels.count(1) < 1650
    assert set(levels[-100:]) == {2}


def test_the_shifted_set_is_held_out_and_of_large_numbers():
    some = list(itertools.islice(mixture.shifted_problems(seed=0), 60))
    assert [row["level"] for row in some[:6]] == [2, 4, 5, 2, 4, 5]
    for row in some:
        assert expressions.split_of(row["problem"][:-1]) == "eval"
        assert int(row["answer"]) == value(row["problem"])
        numbers = "".join(x if x.isdigit() else " " for x in row["problem"]).split()
        assert all(6 <= int(x) <= 9 or 60 <= int(x) <= 99 for x in numbers), row


def test_prepared_as_a_set_by_its_name(tmp_path):
    spec = "arithmetic:train-40-hard50-wrong20[:10]"
    for _ in range(2):  # made, and read again
        made = problems_lib.load_problems(spec, data_dir=tmp_path)
    assert len(made) == 10
    assert set(made.columns["kind"]) == {"hard", "usual"}
    assert set(made.columns["wrong"]) <= {False, True}
    assert made.source == spec


@pytest.mark.parametrize(
    ("split", "line"),
    [
        (
            "train-hard50",
            "arithmetic:train-hard50: write train-COUNT-hardA-solvedB-skewC-wrongD, in "
            "this order and with percents from 1 to 100, as in train-2048-hard50; "
            "leave out what is not wanted",
        ),
        (
            "train-9-wrong5-hard5",
            "arithmetic:train-9-wrong5-hard5: write train-COUNT-hardA-solvedB-skewC-"
            "wrongD, in this order and with percents from 1 to 100, as in "
            "train-2048-hard50; leave out what is not wanted",
        ),
        (
            "train-40000",
            "arithmetic:train-40000: 40000 problems, where 32768 are the most; give "
            "fewer",
        ),
        (
            "train-9-hard60-skew50",
            "arithmetic:train-9-hard60-skew50: hard, solved and skew are 110 % "
            "together; give 100 at most",
        ),
        (
            "trains",
            "arithmetic:trains: arithmetic has no split 'trains'; give one of "
            "arithmetic:train, arithmetic:eval, arithmetic:eval-shifted, "
            "arithmetic:train-COUNT…",
        ),
    ],
)
def test_a_name_that_is_no_split_is_one_line(split, line, tmp_path):
    with pytest.raises(InputError) as error:
        problems_lib.load_problems(f"arithmetic:{split}", data_dir=tmp_path)
    assert str(error.value) == line


def test_too_many_of_a_kind_is_one_line(monkeypatch):
    monkeypatch.setattr(mixture, "_draw", lambda *_: [40, "*", 8, "+", 30])
    monkeypatch.setattr(expressions, "split_of", lambda _: "train")
    with pytest.raises(InputError) as error:
        rows("train-2-skew100")
    assert str(error.value) == (
        "arithmetic:train-2-skew100: there are not many more than 1 problems of the "
        "kind 'skew'; give a smaller count or share"
    )
