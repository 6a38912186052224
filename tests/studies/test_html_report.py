"""The page of a run: whole, alone, and safe from what a policy wrote."""

import gzip
import html.parser
import json
import runpy
import subprocess
import sys

import pytest
from tiny_run import ROOT

from limr_jax.errors import InputError
from limr_jax.storage import metrics, rollout_dump
from limr_jax.storage.workdir import claim, release, write_result
from limr_jax.studies import html_report

EVIL = "</pre><script>alert('x')</script>&lt; \x00\x1b[31m \ud800"


@pytest.fixture
def run(tmp_path):
    """(name, learning rate) → the workdir of a run of three steps."""

    def make(name="run", rate=0.01, response="1 + 1 = 2"):
        path = tmp_path / name
        config = {"num_steps": 3, "optimizer": {"learning_rate": rate}}
        claim(path, {"config": config})
        release(path)
        dump = rollout_dump.Dump(path)
        with metrics.Metrics(path) as log:
            for step in (1, 2, 3):
                numbers = {"pass_rate": step / 4, "response_length": 5.0}
                log.step(step, numbers)
                row = {"sample": 0, "prompt": "1+1=", "response": response}
                dump.add(
                    step,
                    [row | {"id": f"p{i}", "reward": i / 4} for i in range(9)],
                )
            for step, accuracy in ((0, 0.25), (3, 0.625)):
                log.evaluation(
                    step,
                    {"accuracy": accuracy, "well_formed": 1.0, "response_length": 7.5}
                    | {"accuracy_level_1": accuracy / 2},
                )
        write_result(path, {"seconds": 12.5})
        return path

    return make


class Page(html.parser.HTMLParser):
    """The elements, the cells of tables, the texts in <pre>, what is loaded."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.pre, self.loads = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attrs = dict(attrs)
        self.loads += [x for x in (attrs.get("src"), attrs.get("href")) if x]

    def handle_data(self, data):
        last = self.tags[-1] if self.tags else ""
        if last in ("td", "th"):
            self.cells.append(data)
        elif last == "pre":
            self.pre.append(data)


def test_a_page_says_what_the_run_came_to(run):
    text = html_report.page([run()], samples=4)
    page = Page(text)
    assert len(text) < 150_000
    assert [x for x in page.loads if not x.startswith("#")] == []
    assert page.tags.count("svg") == 1
    row = page.cells[page.cells.index("3 of 3") :]
    # Accuracy, before and after; well formed; tokens, likewise; pass rate; seconds.
    assert [x for x in row if x.strip()][1:8] == (
        ["0.25", "0.625", "1", "7.5", "7.5", "0.75", "12.5"]
    )
    assert "0.125" in page.cells and "0.3125" in page.cells  # by level
    assert page.pre.count("1 + 1 = 2") == 8  # four of the first step, four of the last
    assert "optimizer.learning_rate = 0.01" in text


def test_runs_are_compared_with_the_first(run):
    one, two = run("one"), run("two", rate=0.5)
    text = html_report.page([one, two], samples=0)
    assert "optimizer.learning_rate: 0.01 → 0.5" in text
    assert Page(text).cells.count("3 of 3") == 2
    with pytest.raises(InputError, match="named twice"):
        html_report.page([one, one], samples=0)


def test_what_a_policy_wrote_is_text(run):
    path = run("$\\evil$<b>", response=EVIL)
    text = html_report.page([path], samples=2)
    assert "script" not in Page(text).tags and "b" not in Page(text).tags
    for character in ("\x00", "\x1b", "\ud800"):
        assert character not in text
    assert "&lt;/pre&gt;&lt;script&gt;alert(&#x27;x&#x27;)" in text
    long = html_report.page([run("long", response="x" * 5000)], samples=1)
    assert "x" * 2000 + "… (3,000 characters more)" in long
    assert "x" * 2001 not in long


def test_a_run_that_goes_on(run):
    path = run()
    for name in ("evals.jsonl", "result.json"):
        (path / name).unlink()
    assert Page(html_report.page([path], samples=1)).cells.count("–") >= 6


def test_a_run_that_was_evaluated_once(run):
    """Before it began, or after: what is not there is no figure of the other."""
    path, heads = run(), list(html_report._EVALS)
    lines = (path / "evals.jsonl").read_text().splitlines(keepends=True)
    for kept, shown, when in (
        (lines[0], ["0.25", "–", "–", "7.5", "–"], "before, step 0"),
        (lines[1], ["–", "0.625", "1", "–", "7.5"], "after, step 3"),
    ):
        (path / "evals.jsonl").write_text(kept)
        cells = Page(html_report.page([path], samples=0)).cells
        cells = [x for x in cells if x.strip()]
        first = cells.index("3 of 3") + 1
        assert cells[first : first + len(heads)] == shown
        assert [x for x in cells if ", step" in x] == [when]


@pytest.mark.slow
def test_the_command(run, tmp_path):
    path = run()
    command = [sys.executable, str(ROOT / "launch/report.py"), str(path)]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(f"{path / 'report.html'}: ")
    assert (path / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required: RUN"),
        (["nowhere"], "run.json does not exist"),
        (["a", "b"], "give --out FILE.html"),
        (["a", "--samples=-1"], "--samples=-1"),
        (["a", "--samples=x"], "invalid int"),
        (["empty"], "has no step of a run yet"),
        (["run", "--out=no/where.html"], "cannot be written"),
    ],
)
def test_a_mistake_is_one_line(run, tmp_path, monkeypatch, words, said):
    run()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/run.json").write_text(json.dumps({"config": {}}))
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(ROOT / "launch/report.py"))["main"]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as caught:
        main(words)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def line(**values):
    return (json.dumps(values) + "\n").encode()


DEEP = b"[" * 10**5
OTHERS = ["x", "9" * 400, [1], {"a": [2]}, None, True, 10**400, -1e308, float("inf")]
LINES = {
    "binary": bytes(range(256)),
    "empty": b"",
    "a partial line": line(step=3, pass_rate=0.5)[:-4],
    "no step": line(pass_rate=0.5),
    "a step that is none": line(step="3", pass_rate=0.5) + line(step=[], accuracy=1),
    "deep": DEEP + b"\n",
    "long": b"x" * (2**24 + 9) + b"\n",
    "missing keys": line(step=1) + line(step=3),
    "huge steps": line(step=10**30, pass_rate=0.5) + line(step=-1, accuracy=0.5),
    "Infinity": b'{"step": 3, "pass_rate": Infinity, "accuracy": NaN}\n',
} | {
    f"of another type: {str(value)[:20]}": line(
        step=3,
        pass_rate=value,
        accuracy=value,
        response_length=value,
        well_formed=value,
        accuracy_level_1=value,
    )
    for value in OTHERS
}
TEXTS = {
    "binary": bytes(range(256)),
    "empty": b"",
    "a list": b"[]",
    "a number": b"3",
    "half": b'{"config": {"num_steps',
    "deep": b'{"config": ' + DEEP,
    "other types": b'{"config": 3, "seconds": "x"}',
    "odd fields": b'{"config": {"num_steps": {"a": [1]}, "": {}}, "seconds": [1]}',
    "a huge number": b'{"config": {"num_steps": 1'
    + b"0" * 400
    + b'}, "seconds": 1e999}',
    "a very huge number": b'{"config": {"num_steps": 1' + b"0" * 5000 + b"}}",
}
MEMBERS = {
    "text": b"no gzip",
    "other rows": gzip.compress(b"3\n[]\n"),
    "missing keys": gzip.compress(line(step=1) + line(step=1, id=3)),
    "other types": gzip.compress(
        line(step=1, id=[1], prompt=[1, {"role": 2}, {"content": 3}], response={})
        + line(step=1, id=None, prompt=None, response=None, reward="x", sample="\x1b")
    ),
    "not a step": gzip.compress(line(step={}, id="a")),
    "deep": gzip.compress(DEEP + b"\n"),
    "binary": gzip.compress(bytes(range(256))),
}
LOGS = ("metrics.jsonl", "evals.jsonl")
TAMPERED = [
    *(("metrics.jsonl", name, data) for name, data in LINES.items()),
    *(("evals.jsonl", name, data) for name, data in LINES.items()),
    *(("run.json", name, data) for name, data in TEXTS.items()),
    *(("result.json", name, data) for name, data in TEXTS.items()),
    *(("rollouts/00000001.jsonl.gz", name, data) for name, data in MEMBERS.items()),
    *((x, "a folder", None) for x in ("metrics.jsonl", "evals.jsonl", "result.json")),
]


@pytest.mark.slow
@pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.soak)])
def test_tampered_files_are_one_line_or_named_on_the_page(run, every):
    """Whatever the bytes; where a page can be made it is whole, and says what lacks.

    Of two logs of lines, which are read by one function, each has every second fault.
    """
    path = run()
    whole = {name: (path / name).read_bytes() for name, _, _ in TAMPERED}
    ends = {"page": 0, "line": 0}
    chosen = [x for x in TAMPERED if x[0] not in LOGS]
    for i, log in enumerate(LOGS):
        chosen += [x for x in TAMPERED if x[0] == log][i % every :: every]
    for name, how, data in chosen:
        file = path / name
        if data is None:
            file.unlink()
            file.mkdir()
        else:
            file.write_bytes(data)
        try:
            text = html_report.page([path], samples=2)
            ends["page"] += 1
            assert text.endswith("</html>\n"), (name, how)
            if name == "result.json" and how not in ("other types", "odd fields"):
                # An object of other fields is a result without seconds.
                missing = "result.json" in text.partition("<h2>Results")[0]
                assert missing == (how != "a huge number"), how
        except InputError as error:
            ends["line"] += 1
            assert "\n" not in str(error) and str(path) in str(error), (name, how)
        if data is None:
            file.rmdir()
        file.write_bytes(whole[name])
    assert ends["page"] > 2 * ends["line"] > 20 / every, ends


def test_a_damaged_file_is_named_on_the_page(run):
    path = run()
    with (path / "metrics.jsonl").open("ab") as file:
        file.write(b"\0\0\n{\n")
    (path / "result.json").write_text("{")
    segment = path / "rollouts/00000001.jsonl.gz"
    segment.write_bytes(segment.read_bytes()[:-40])
    text = html_report.page([path], samples=1)
    missing = text.partition("<h2>Missing</h2>")[2].partition("<h2>Results")[0]
    assert f"<li>{path}/metrics.jsonl: 2 lines cannot be read</li>" in missing
    assert f"<li>{path}/result.json cannot be read (Expecting property" in missing
    assert "The dump holds no rollouts of step 3." in text
    assert "<h3>Step 1</h3>" in text


def test_links_that_lead_nowhere(run, tmp_path):
    path = run()
    for name in ("result.json", "evals.jsonl"):
        (path / name).unlink()
        (path / name).symlink_to(tmp_path / "gone")
    assert Page(html_report.page([path], samples=1)).cells.count("–") >= 6
    (path / "rollouts/00000009.jsonl.gz").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="00000009.jsonl.gz cannot be read"):
        html_report.page([path], samples=1)
