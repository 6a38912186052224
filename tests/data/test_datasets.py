"""The public sets: every source's rows, local files, and the download."""

import dataclasses
import functools
import http.server
import io
import json
import pathlib
import runpy
import socket
import subprocess
import sys
import threading
import zipfile

import pytest

from limr_jax.data import problems
from limr_jax.data.boxed import reference_answer
from limr_jax.data.datasets import catalogue, normalise, tfds
from limr_jax.data.overlap import evaluation_sets, refuse_held_out, refuse_overlap
from limr_jax.data.problems import load_problems
from limr_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("source", "prefix", "expected"),
    [
        (  # GSM8K
            {"question": "q", "answer": "5*2 = 10\n#### 1,080"},
            "gsm8k-train-",
            ("gsm8k-train-7", "q", "1080", True, {"solution": "5*2 = 10\n#### 1,080"}),
        ),
        (  # AIME24 as Qwen has it
            {"id": 60, "problem": "q", "answer": "204", "year": "2024"},
            "aime24-",
            ("aime24-60", "q", "204", True, {"year": "2024"}),
        ),
        (  # AMC23 as Qwen has it
            {"id": 3, "problem": "q", "answer": 27.0},
            "amc23-",
            ("amc23-3", "q", "27", True, {}),
        ),
        (  # Minerva: the answer is in the last box
            {
                "problem": "q",
                "solution": r"\boxed{1} so \boxed{\frac{1}{2}}.",
                "idx": 4,
            },
            "minerva-",
            (
                "minerva-4",
                "q",
                r"\frac{1}{2}",
                True,
                {"solution": r"\boxed{1} so \boxed{\frac{1}{2}}."},
            ),
        ),
        (  # OlympiadBench
            {"id": 1606, "question": "q", "final_answer": ["2", "3"], "subfield": "A"},
            "olympiadbench-",
            ("olympiadbench-1606", "q", "2,3", True, {"subject": "A"}),
        ),
        (  # MATH500
            {"unique_id": "test/a/8.json", "problem": "q", "answer": "9", "level": 2},
            "",
            ("test/a/8.json", "q", "9", True, {"level": 2}),
        ),
        (  # MATH, as first published
            {"problem": "q", "solution": "1", "answer": "1", "level": "Level 5"},
            "x-",
            ("x-7", "q", "1", True, {"solution": "1", "level": 5}),
        ),
        (  # LIMR
            {"id": "d10e-4", "prompt": "q", "answer": "118", "source": "math"},
            "",
            ("d10e-4", "q", "118", True, {"source": "math"}),
        ),
        (  # NuminaMath 1.5: a proof, and an answer that its makers doubt
            {"problem": "q", "answer": "proof", "question_type": "proof"},
            "numinamath-",
            ("numinamath-7", "q", "proof", False, {"question_type": "proof"}),
        ),
        (
            {"problem": "q", "answer": "2", "problem_is_valid": "Incomplete"},
            "numinamath-",
            ("numinamath-7", "q", "2", False, {"problem_is_valid": "Incomplete"}),
        ),
        (
            {"problem": "q", "answer": "2", "problem_is_valid": "Yes"},
            "numinamath-",
            ("numinamath-7", "q", "2", True, {"problem_is_valid": "Yes"}),
        ),
        (  # ProofNet
            {
                "id": "Rudin|1",
                "nl_statement": "q",
                "nl_proof": "\\begin{proof}\n\n  p\n\n\\end{proof}",
            },
            "proofnet-valid-",
            ("proofnet-valid-Rudin|1", "q", "p", False, {"reference": "p"}),
        ),
        (  # miniF2F
            {"problem_name": "amc", "informal_statement": "q", "informal_proof": "p"},
            "minif2f-test-",
            ("minif2f-test-amc", "q", "p", False, {"reference": "p"}),
        ),
        (  # IMO-ProofBench
            {"Problem ID": "PB-1", "Problem": "q", "Solution": "p", "Category": "A"},
            "",
            ("PB-1", "q", "p", False, {"reference": "p", "subject": "A"}),
        ),
        (  # A row of this project's own shape
            {"id": "aime25-3", "problem": "q", "answer": "70", "level": None},
            "aime25-",
            ("aime25-3", "q", "70", True, {"level": None}),
        ),
    ],
)
def test_rows_of_every_source(source, prefix, expected):
    row = normalise.normalise(source, "here", prefix, index=7)
    assert tuple(row.values()) == expected


def test_a_row_without_a_problem():
    with pytest.raises(InputError, match="here: no problem"):
        normalise.normalise({"answer": "1"}, "here", "", 0)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{2}", "2"),
        (r"\boxed{ \frac{1}{2} } and more}", r"\frac{1}{2}"),
        (r"\boxed{1} \boxed{2", None),
        (r"\boxed{3} … \boxed 7", "7"),
        (r"\fbox{3}, so \boxed {7}", "7"),
        ("none", None),
    ],
)
def test_last_box(text, box):
    assert reference_answer(text) == box


def test_every_set_of_the_table_has_its_package():
    assert set(tfds.names()) == {*catalogue.FACTS, "arithmetic", "arithmetic_sft"}


def test_recorded_checksums_are_of_the_real_rows(shared):
    checked = 0
    for name, known in catalogue.FACTS.items():
        for split, each in known.splits.items():
            file = catalogue.local_file(shared / "data", name, split)
            if file:
                parsed = catalogue.read_local(file, name, split)
                assert each.rows in (None, len(parsed))
                assert each.sha256 in (None, catalogue.digest(parsed))
                checked += each.sha256 is not None
    assert checked == 9


@pytest.mark.parametrize("name", ["aime24", "olympiadbench"])
def test_a_prepared_set_is_its_local_file(name, shared, tmp_path):
    folder = shared / "data"
    found = load_problems(
        f"{name}:test", data_dir=tmp_path / "cache", manual_dir=folder
    )
    file = load_problems(str(folder / f"{name}.jsonl"), data_dir=tmp_path)
    assert found.digest == file.digest
    assert found.columns == file.columns | {"verifiable": (True,) * len(file)}


def test_splits_in_one_file(shared, tmp_path):
    where = {"data_dir": tmp_path, "manual_dir": shared / "data"}
    valid = load_problems("proofs:valid", **where)
    test = load_problems("proofs:test", **where)
    assert (len(valid), len(test)) == (428, 489)
    assert set(valid.columns["verifiable"]) == {False}
    assert valid.answers == valid.columns["reference"]


def aime(count, answer="7"):
    row = {"problem": "How many?", "answer": answer}
    return "\n".join(json.dumps(row | {"id": 60 + i}) for i in range(count)).encode()


def test_local_files_by_name_and_what_changed(tmp_path):
    manual, cache = tmp_path / "manual", tmp_path / "cache"
    (manual / "aime24").mkdir(parents=True)
    (manual / "aime24" / "test.jsonl").write_bytes(aime(2))
    where = {"data_dir": cache, "manual_dir": manual}
    assert load_problems("aime24:test", **where).ids == ("aime24-60", "aime24-61")
    assert tfds.at_hand("aime24:test", cache)
    (manual / "aime24" / "test.jsonl").write_bytes(aime(2, answer="8"))
    with pytest.raises(InputError, match="is not what .* was prepared from; remove"):
        load_problems("aime24:test", **where)


def test_a_folder_of_files(tmp_path):
    folder = tmp_path / "manual" / "aime24" / "test"
    folder.mkdir(parents=True)
    (folder / "b.json").write_text('[{"id": 2, "problem": "q", "answer": 1}]')
    (folder / "a.csv").write_text("id,question,answer\n1,p,0\n")
    problems = load_problems("aime24:test", data_dir=tmp_path)
    assert problems.ids == ("aime24-1", "aime24-2")
    assert problems.answers == ("0", "1")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("aime24.jsonl", b"{", "aime24.jsonl:1: not JSON"),
        ("aime24.json", b"[1]", "aime24.json row 1: a JSON number, not an object"),
        ("aime24.json", b"{", "aime24.json: not JSON"),
        ("aime24.jsonl", b'{"id": 1}', "aime24.jsonl:1: no problem"),
        ("gsm8k.jsonl", b'{"id": 1}', "`split` is None, none of train, test"),
    ],
)
def test_bad_local_files(tmp_path, name, content, said):
    (tmp_path / "manual").mkdir()
    (tmp_path / "manual" / name).write_bytes(content)
    spec = f"{name.split('.')[0]}:test"
    with pytest.raises(InputError, match=said):
        load_problems(spec, data_dir=tmp_path)


def test_parquet_asks_for_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "x.parquet").touch()
    with pytest.raises(InputError, match="run pip install pyarrow"):
        list(normalise.read(tmp_path / "x.parquet"))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow: extra [parquet]")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist([{"problem": "q", "answer": "1"}])
    parquet.write_table(table, tmp_path / "x.parquet")
    ((_, row),) = normalise.read(tmp_path / "x.parquet")
    assert row == {"problem": "q", "answer": "1"}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local HTTP server as the sets' source, and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        root = f"http://127.0.0.1:{found.server_address[1]}"

        def serve(name, split, files, **known):
            sources = tuple((f"{root}/{file}", prefix) for file, prefix in files)
            splits = {split: catalogue.Split(sources, **known)}
            changed = dataclasses.replace(catalogue.FACTS[name], splits=splits)
            monkeypatch.setitem(catalogue.FACTS, name, changed)
            return folder, asked

        yield serve
        found.shutdown()
        thread.join()


def load(spec, tmp_path):
    return load_problems(spec, data_dir=tmp_path / "cache")


def test_download_once(server, tmp_path, capfd):
    folder, asked = server("aime24", "test", [("x/test.jsonl", "aime24-")], rows=2)
    (folder / "x").mkdir()
    (folder / "x" / "test.jsonl").write_bytes(aime(2))
    assert not tfds.at_hand("aime24:test", tmp_path / "cache")
    problems = load("aime24:test", tmp_path)
    assert problems.ids == ("aime24-60", "aime24-61")
    assert tfds.at_hand("aime24:test", tmp_path / "cache")
    count = len(asked)
    assert count > 0
    assert load("aime24:test", tmp_path) == problems
    assert len(asked) == count
    assert capfd.readouterr() == ("", "")


def test_download_keeps_url_and_checksum(server, tmp_path, capfd):
    folder, _ = server(
        "aime24", "test", [("test.jsonl", "aime24-")], rows=2, sha256="0" * 64
    )
    (folder / "test.jsonl").write_bytes(aime(2))
    load("aime24:test", tmp_path)
    said = capfd.readouterr().err
    assert said.startswith("aime24:test: rows differ from those recorded (sha256")
    assert len(said.splitlines()) == 1
    (file,) = (tmp_path / "cache").rglob("metadata.json")
    kept = json.loads(file.read_text())["test"]
    assert kept["source"] == [catalogue.FACTS["aime24"].splits["test"].sources[0][0]]
    assert kept["sha256"][:12] in said


def test_several_sources_and_a_folder_in_an_archive(server, tmp_path):
    folder, _ = server(
        "proofs",
        "valid",
        [("p.jsonl", "a-"), ("f.zip#informal/valid", "b-"), ("i.csv", "")],
    )
    (folder / "p.jsonl").write_text('{"id": 1, "nl_statement": "q", "nl_proof": "p"}')
    (folder / "i.csv").write_text("Problem ID,Problem,Solution\nPB-1,q,p\n")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("valid/one", "valid/two", "test/no"):
            row = {"informal_statement": "q", "informal_proof": "p"}
            said = json.dumps(row | {"problem_name": name[-3:]})
            file.writestr(f"miniF2F-main/informal/{name}.json", said)
    (folder / "f.zip").write_bytes(archive.getvalue())
    assert load("proofs:valid", tmp_path).ids == ("a-1", "b-one", "b-two", "PB-1")


def test_a_source_that_changed_or_went(server, tmp_path):
    folder, _ = server("aime24", "test", [("test.jsonl", "")], rows=30)
    with pytest.raises(InputError, match="cannot be downloaded from .*; put aime24_"):
        load("aime24:test", tmp_path)
    (folder / "test.jsonl").write_bytes(aime(2))
    with pytest.raises(InputError, match="the source has 2 rows instead of 30"):
        load("aime24:test", tmp_path)


def test_no_network_is_said_at_once(tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/test.jsonl"
        splits = {"test": catalogue.Split(((url, ""),))}
        changed = dataclasses.replace(catalogue.FACTS["aime24"], splits=splits)
        monkeypatch.setitem(catalogue.FACTS, "aime24", changed)
        with pytest.raises(InputError, match="cannot be downloaded"):
            load("aime24:test", tmp_path)


@pytest.mark.slow
def test_training_on_an_evaluation_problem_is_refused(tmp_path, shared):
    rows_ = [{"id": "mine", "problem": "q", "answer": "1"}]
    stolen = json.loads((shared / "data" / "amc23.jsonl").read_text().split("\n")[5])
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, [*rows_, stolen | {"id": "s"}])))
    train = load_problems(str(file), data_dir=tmp_path)
    where = {"data_dir": tmp_path, "manual_dir": shared / "data"}
    evaluation = load_problems("amc23:test", **where)
    with pytest.raises(InputError, match=f"1 of 2 .* 's' = '{stolen['id']}'"):
        refuse_overlap(train, evaluation)
    refuse_overlap(train.take([0]), evaluation)
    sets, absent = evaluation_sets(data_dir=tmp_path, manual_dir=tmp_path)
    assert [each.source for each in sets] == ["amc23:test"]
    assert "math500:test" in absent
    with pytest.raises(InputError, match="are in amc23:test"):
        refuse_held_out(train, **where)
    refuse_held_out(train.take([0]), **where)


@pytest.mark.slow
def test_a_name_alone_is_its_only_split(tmp_path, shared):
    where = {"data_dir": tmp_path, "manual_dir": shared / "data"}
    named = load_problems("amc23[:3]", **where)
    assert named.ids == load_problems("amc23:test[:3]", **where).ids
    with pytest.raises(InputError, match="give one of gsm8k:train, gsm8k:test"):
        load_problems("gsm8k", **where)


@pytest.mark.slow
def test_describe(tmp_path, shared):
    file = tmp_path / "some.jsonl"
    lines = (shared / "data" / "amc23.jsonl").read_text().splitlines()
    more = [
        {"id": "a", "problem": "One two.", "answer": "", "level": 3},
        {"id": "b", "problem": "one  TWO.", "answer": "12", "level": 4},
    ]
    file.write_text("\n".join([lines[0], *map(json.dumps, more)]))
    command = [sys.executable, str(ROOT / "launch" / "data.py"), "describe", str(file)]
    command += ["--data_dir", str(tmp_path / "c"), "--manual_dir", str(tmp_path)]
    command += ["--eval", str(shared / "data" / "amc23.jsonl")]
    command += ["--tokenizer", str(shared / "tokenizers" / "qwen2")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["problems"] == 3
    assert said["level"] == {"3": 1, "4": 1, "None": 1}
    assert said["without_answer"] == ["a"]
    assert said["duplicates"] == [["a", "b"]]
    assert list(said["overlap"].values()) == [[["amc23-0", "amc23-0"]]]
    assert said["unit"] == "tokens"
    assert (said["answer"]["min"], said["answer"]["max"]) == (0, 2)
    assert said["not_compared"] == list(catalogue.EVALUATION_SETS)
    command[3] = str(tmp_path / "absent.jsonl")
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1


def test_describe_compares_with_the_other_split(tmp_path, capsys):
    """And with what --eval names, be it the set itself."""
    describe = runpy.run_path(str(ROOT / "launch" / "data.py"))["main"]
    question = {"question": "How many?", "answer": "So many. #### 7"}
    rows = [question | {"split": split} for split in ("train", "test")]
    rows += [{"question": "Why?", "answer": "#### 8", "split": "train"}]
    manual = tmp_path / "manual"
    manual.mkdir()
    (manual / "gsm8k.jsonl").write_text("\n".join(map(json.dumps, rows)))
    where = ["--data_dir", str(tmp_path / "cache"), "--manual_dir", str(manual)]

    def overlap(spec, *more):
        describe(["describe", spec, *where, *more])
        said = json.loads(capsys.readouterr().out.splitlines()[-1])
        others = [x for x in catalogue.EVALUATION_SETS if x != "gsm8k:test"]
        assert said["not_compared"] == others
        return {name: len(pairs) for name, pairs in said["overlap"].items()}

    assert overlap("gsm8k:train[:5]") == {"gsm8k:test": 1}
    assert overlap("gsm8k:test") == {}
    assert overlap("gsm8k:test", "--eval=gsm8k:test") == {"gsm8k:test": 1}
    two = overlap("gsm8k:train[1:]", "--eval=gsm8k:train[:1]")
    assert two == {"gsm8k:test": 0, "gsm8k:train[:1]": 0}


def test_a_file_of_a_sets_name_is_no_set(tmp_path, monkeypatch):
    """Where a file and a public set have one name, the file is meant."""
    monkeypatch.chdir(tmp_path)
    row = {"id": "a", "problem": "1+1=", "answer": "2"}
    (tmp_path / "math500").write_text(json.dumps(row))
    assert problems.named_file("math500[:1]") == pathlib.Path("math500")
    assert load_problems("math500[:1]", data_dir=tmp_path).ids == ("a",)
    own_names = runpy.run_path(str(ROOT / "launch" / "data.py"))["_own_names"]
    assert own_names("math500") == set()
    assert own_names("aime24[:3]") == {"aime24:test"}
