"""Texts to fine-tune on: by hand, and as a program."""

import json
import runpy

import pytest
from tiny_run import ROOT

from limr_jax.data import sft_texts
from limr_jax.data.problems import load_problems
from limr_jax.data.tokenizer import load_tokenizer
from limr_jax.errors import InputError
from limr_jax.storage import rollout_dump

MAIN = runpy.run_path(str(ROOT / "launch/texts.py"))["main"]
TOKENIZER = ROOT / "limr_jax/assets/arithmetic"


def proofs(path, answers):
    rows = [
        {"id": str(i), "problem": f"p{i}", "reference": answer, "level": i}
        for i, answer in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_problems(str(path), data_dir=None)


def test_terms_are_frequent_here_and_rare_elsewhere():
    found = sft_texts.terms(
        [
            "even then even since \\mid of",
            "then \\mid odd since",
            "even then only",
            "then since",
        ],
        count=2,
        least=2,
    )
    # 'then' is in all four, worth 0; 'only' in one; 'odd', 'of' are too short.
    assert found == [["even", "\\mid"], ["\\mid", "since"], ["even", "then"]] + [
        ["then", "since"]
    ]


def test_a_plan_the_phrase_and_the_reference(tmp_path):
    problems = proofs(tmp_path / "p.jsonl", ["Proof of gcd"] * 3 + ["Proof, other"])
    rows = list(sft_texts.planned(problems, phrase="#### ", count=1, plain=3))
    assert [row["solution"] for row in rows] == [
        "#### Proof of gcd",  # every third without a plan
        "\nProof\n#### Proof of gcd",
        "\nProof\n#### Proof of gcd",
        "#### Proof, other",
    ]
    assert rows[1]["prompt"] == "p1" and rows[1]["level"] == 1
    bare = sft_texts.planned(problems, phrase="#### ", count=0, plain=0)
    assert all(row["solution"].startswith("#### Proof") for row in bare)


def test_short_counts_problem_and_answer(tmp_path):
    problems = proofs(tmp_path / "p.jsonl", ["1" * n for n in (2, 3, 4)])
    tokenizer = load_tokenizer(TOKENIZER)  # a token a character
    assert sft_texts.short(problems, tokenizer, tokens=5).ids == ("0", "1")


def write(response, **changes):
    row = {"id": "a", "prompt": "1+1=", "response": response, "correct": 1.0}
    return row | {"valid": True, "truncated": False} | changes


CHAT = [
    {"role": "system", "content": "Add."},
    {"role": "user", "content": "1+1="},
]


def test_right_responses_once_each():
    rows = [
        write("2"),
        write("3", correct=0.0),
        write("2"),
        write("so 2"),
        write("2.", valid=False),
        write("2!", truncated=True),
        write("2", prompt="0+2=", id="b"),
        write("2", prompt=CHAT, id="c"),
        write("2", prompt=CHAT, id="c"),
    ]
    kept = list(sft_texts.right(rows))
    assert [(row["prompt"], row["solution"]) for row in kept] == [
        ("1+1=", "2"),
        ("1+1=", "so 2"),
        ("0+2=", "2"),
        (CHAT, "2"),
    ]
    assert len({row["id"] for row in kept}) == 4


def test_a_chat_stays_a_chat(tmp_path):
    """From the dump of a run to the texts that fine-tuning reads."""
    rollout_dump.Dump(tmp_path / "run").add(1, [write("2", prompt=tuple(CHAT))])
    out = tmp_path / "own.jsonl"
    MAIN(["right", str(tmp_path / "run"), "--out", str(out)])
    read = load_problems(str(out), data_dir=None)
    assert list(read.messages[0]) == CHAT


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", None),
        ("prompt", 5),
        ("prompt", [{"role": "user"}]),
        ("response", 5),
        ("correct", "1"),
        ("valid", None),
        ("truncated", 0),
    ],
)
def test_a_dump_that_was_changed_is_refused(tmp_path, field, value):
    run, out = tmp_path / "run", tmp_path / "own.jsonl"
    rollout_dump.Dump(run).add(3, [write("2"), write("2") | {field: value}])
    with pytest.raises(InputError, match=f"a rollout of step 3 has no '{field}', or"):
        MAIN(["right", str(run), "--out", str(out)])
    assert not out.exists()


def test_a_valid_rollout_without_a_grade_is_not_right():
    assert not [*sft_texts.right([write("2", correct=None)])]


def test_no_folder_and_too_many_sums(tmp_path):
    out = ["--out", str(tmp_path / "own.jsonl")]
    with pytest.raises(InputError, match="nothere: no such folder"):
        MAIN(["right", str(tmp_path / "nothere"), *out])
    with pytest.raises(InputError, match="--count=1000000001 must be from 1 to 1,000"):
        MAIN(["sums", "any.jsonl", "--count", "1000000001", *out])


def test_as_a_program(tmp_path, capsys):
    """From problems to texts that fine-tuning reads; what goes wrong is one line."""
    proofs(tmp_path / "p.jsonl", ["gcd gcd", "lcm, and much more"])
    said = []
    for argv in (
        ["short", tmp_path / "p.jsonl", "--tokenizer", TOKENIZER, "--tokens=12"],
        ["plans", tmp_path / "p.jsonl", "--terms=0"],
    ):
        MAIN([*map(str, argv), f"--out={tmp_path / argv[0]}.jsonl"])
        said.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert [(x["read"], x["written"]) for x in said] == [(2, 1), (2, 2)]
    read = load_problems(str(tmp_path / "plans.jsonl"), data_dir=None)
    assert read.columns["solution"] == ("#### gcd gcd", "#### lcm, and much more")
    rollout_dump.Dump(tmp_path / "run").add(1, [write("3", correct=0.0)])
    out = tmp_path / "right.jsonl"
    run, given = str(tmp_path / "run"), str(tmp_path / "p.jsonl")
    folder = "give a folder with rollouts/ of which some are"
    for argv, line in (
        (["right", run], f"{run}: none of 1 responses is right and whole; {folder}"),
        (
            ["right", str(tmp_path)],
            f"{tmp_path}: none of 0 responses is right and whole; {folder}: {run}",
        ),
        (
            ["short", given, "--tokenizer", str(TOKENIZER), "--tokens=1"],
            f"{given}: none of 2 problems has at most --tokens=1 tokens; give more",
        ),
        (["plans", given, "--terms=-1"], "--terms=-1 must be 0 or more"),
        (["plans", given, "--plain=-1"], "--plain=-1 must be 0 or more"),
    ):
        with pytest.raises(InputError) as caught:
            MAIN([*argv, f"--out={out}"])
        assert str(caught.value) == line
    assert not out.exists()
    given = tmp_path / "p.jsonl"
    for out, said in (
        (given, "is what is read"),
        (tmp_path / "no/o.jsonl", "no such folder"),
        ("gs://b/o.jsonl", "not on this machine"),
    ):
        with pytest.raises(InputError, match=said):
            # Nothing is read for it: there is no such tokenizer.
            MAIN(["short", f"{given}[:1]", "--tokenizer=nowhere", f"--out={out}"])
    assert load_problems(str(given), data_dir=None)


def test_a_tokenizer_of_short_texts(tmp_path):
    """What SentencePiece cannot train is the pieces, not the texts' length."""
    main = runpy.run_path(str(ROOT / "launch/tokenizer.py"))["main"]
    proofs(tmp_path / "p.jsonl", ["gcd", "lcm"])
    argv = [str(tmp_path / "t.model"), f"--texts={tmp_path / 'p.jsonl'}"]
    main([*argv, "--pieces=276"])
    assert load_tokenizer(tmp_path / "t.model").vocab_size == 276
    with pytest.raises(
        InputError, match=r"^--pieces=3 cannot be trained \(.*\); give another number$"
    ):
        main([*argv, "--pieces=3"])
    with pytest.raises(InputError) as caught:
        main([argv[0], "--pieces=300"])
    assert str(caught.value) == "--pieces=300 does nothing without --texts"


def test_no_output_is_the_set_that_is_read(tmp_path, monkeypatch):
    """However the set is named: with a slice, with brackets, by its source's copy."""
    tokenizer = runpy.run_path(str(ROOT / "launch/tokenizer.py"))["main"]
    short = ["short", "--tokenizer=nowhere"]
    monkeypatch.chdir(tmp_path)
    for name in ("set.jsonl", "a[1].jsonl", "proofs_valid.jsonl"):
        proofs(tmp_path / name, ["gcd", "lcm"])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for spec, out in (
        ("set.jsonl", "set.jsonl"),
        ("set.jsonl[:1]", "./set.jsonl"),
        ("a[1].jsonl[:1]", "a[1].jsonl"),
        ("proofs:valid[:1]", "proofs_valid.jsonl"),
    ):
        line = f"{out} is what is read; give another file"
        for main, argv, flag in (
            (tokenizer, [out, f"--texts={spec}", "--manual_dir=."], "path"),
            (MAIN, [*short, spec, f"--out={out}", "--manual_dir=."], "--out"),
        ):
            with pytest.raises(InputError) as caught:
                main(argv)
            assert str(caught.value) == f"{flag} {line}"
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_sums_are_right_and_the_same_for_a_seed():
    rows = [*sft_texts.sums(200, each=10, seed=3)]
    assert rows == [*sft_texts.sums(200, each=10, seed=3)]
    assert rows != [*sft_texts.sums(200, each=10, seed=4)]
    assert len({row["id"] for row in rows}) == 200
    count = {"+": 0, "-": 0, "*": 0, "/": 0}
    for row in rows:
        asked = row["problem"].splitlines()[1:]
        solved = row["solution"].splitlines()
        assert len(asked) == len(solved) == 10
        for left, line in zip(asked, solved, strict=True):
            a, sign, b = left.split()
            value = int(line.removeprefix(f"{left} = "))
            wanted = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}
            # A quotient comes out even.
            assert value == wanted[sign] if sign != "/" else value * int(b) == int(a)
            assert value >= 0
            count[sign] += 1
        assert row["answer"] == solved[-1].split()[-1]
    shares = {sign: n / 2000 for sign, n in count.items()}
    expected = {"+": 0.4, "-": 0.35, "*": 0.15, "/": 0.1}
    assert shares == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("solution", "in_steps"),
    [
        ("28 + 36 = 64\n#### 64", "28 + 30 = 58\n58 + 6 = 64\n#### 64"),
        ("852 - 104 = 748", "852 - 100 = 752\n752 - 4 = 748"),
        ("23 * 4 = 92", "20 * 4 = 80\n3 * 4 = 12\n80 + 10 = 90\n90 + 2 = 92"),
        ("6 * 405 = 2430", "400 * 6 = 2400\n5 * 6 = 30\n2400 + 30 = 2430"),
    ],
)  # fmt: skip
def test_steps_by_hand(solution, in_steps):
    assert sft_texts.in_steps(solution) == in_steps


@pytest.mark.parametrize(
    "line",
    ["12 * 11 = 132", "100 - 7 = 93", "3 + 0 = 3", "20 * 3 = 60", "0 * 15 = 0",
     "36 / 4 = 9", "1.5 + 12 = 13.5", "15 - 29 = -14", "28 + 36 = 65", "x = 28 + 36",
     f"{'9' * 5000} + 12 = 3", "28 + ٣٦ = 64"],
)  # fmt: skip
def test_what_has_no_easier_steps_stays(line):
    assert sft_texts.in_steps(line) == line


def test_sums_in_steps_are_the_same_sums():
    """Each step is true and has a number of one place; the last one gives the sum."""
    number = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    for plain, stepped in zip(
        sft_texts.sums(100, each=5, seed=0),
        sft_texts.sums(100, each=5, seed=0, steps=True),
        strict=True,
    ):
        lines = plain["solution"].splitlines()
        in_steps = [sft_texts.in_steps(line) for line in lines]
        assert stepped == plain | {"solution": "\n".join(in_steps)}
        for line, steps in zip(lines, in_steps, strict=True):
            assert steps.split()[-1] == line.split()[-1]
            for step in [] if "/" in line else steps.splitlines():
                a, sign, b, _, value = step.split()
                assert number[sign](int(a), int(b)) == int(value)
                assert min(sum(d != "0" for d in x) for x in (a, b)) <= 1


def test_sums_go_behind_the_problems_that_have_a_solution(tmp_path, capsys):
    path, out = tmp_path / "worked.jsonl", tmp_path / "warm.jsonl"
    rows = [
        {"id": f"p{i}", "problem": "1 + 1?", "answer": "2", "solution": "1 + 1 = 2"}
        for i in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    MAIN(["sums", f"{path}[:2]", "--count", "4", "--each", "2", "--out", str(out)])
    said = json.loads(capsys.readouterr().out)
    assert said == {"read": 2, "written": 6, "out": str(out)}
    written = load_problems(str(out), data_dir=None)
    assert written.ids == ("p0", "p1", *(f"sums-{i}" for i in range(4)))
    assert written.columns["solution"][0] == "1 + 1 = 2"
    with pytest.raises(InputError, match="--each=0 must be from 1 to 1,000"):
        MAIN(["sums", str(path), "--each", "0", "--out", str(tmp_path / "none.jsonl")])
    assert not (tmp_path / "none.jsonl").exists()
    path.write_text(json.dumps(rows[0] | {"solution": "12 + 34 = 46"}) + "\n")
    MAIN(["sums", str(path), "--count", "1", "--steps", "--out", str(out)])
    first, practice = map(json.loads, out.read_text().splitlines())
    assert first["solution"] == "12 + 30 = 42\n42 + 4 = 46"
    assert [practice] == [*sft_texts.sums(1, each=10, seed=0, steps=True)]


def test_sums_go_behind_no_set_that_could_not_be_read_or_learned_then(tmp_path):
    path, out = tmp_path / "worked.jsonl", tmp_path / "warm.jsonl"
    worked = {"id": "a", "problem": "1 + 1?", "answer": "2", "solution": "1 + 1 = 2"}
    bare = {name: x for name, x in worked.items() if name != "solution"}
    for rows, line in (
        (
            [worked, worked | {"id": "sums-1"}],
            f"{path} has the id 'sums-1' already, which a row of sums would have; "
            "take a set without sums, and give --count more",
        ),
        (
            [bare],
            f"{path}: problem 'a' has no solution; add it, or take a set that has one "
            "of each",
        ),
        (
            [worked | {"solution": 5}],
            f"{path}: problem 'a' has a solution that is no text (int); put it in "
            "quotes",
        ),
        (
            [worked, bare | {"id": "b"}],
            f"{path}: problem 'b' has no solution; add it, or take a set that has one "
            "of each",
        ),
    ):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(InputError) as caught:
            MAIN(["sums", str(path), "--count", "2", "--out", str(out)])
        assert str(caught.value) == line
        assert not out.exists()
