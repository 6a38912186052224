"""The page of a run: whole, alone, and safe from what a policy wrote."""

import html.parser
import json
import runpy
import subprocess
import sys

import pytest
from tiny_run import ROOT

from limr_jax import checkpoint, metrics, report
from limr_jax.errors import InputError

EVIL = "</pre><script>alert('x')</script>&lt; \x00\x1b[31m \ud800"


@pytest.fixture
def run(tmp_path):
    """(name, learning rate) → the workdir of a run of three steps."""

    def make(name="run", rate=0.01, response="1 + 1 = 2"):
        path = tmp_path / name
        config = {"num_steps": 3, "optimizer": {"learning_rate": rate}}
        checkpoint.claim(path, {"config": config})
        checkpoint.release(path)
        dump = metrics.Dump(path)
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
        checkpoint.write_result(path, {"seconds": 12.5})
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
    text = report.page([run()], samples=4)
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
    text = report.page([one, two], samples=0)
    assert "optimizer.learning_rate: 0.01 → 0.5" in text
    assert Page(text).cells.count("3 of 3") == 2
    with pytest.raises(InputError, match="named twice"):
        report.page([one, one], samples=0)


def test_what_a_policy_wrote_is_text(run):
    path = run("$\\evil$<b>", response=EVIL)
    text = report.page([path], samples=2)
    assert "script" not in Page(text).tags and "b" not in Page(text).tags
    for character in ("\x00", "\x1b", "\ud800"):
        assert character not in text
    assert "&lt;/pre&gt;&lt;script&gt;alert(&#x27;x&#x27;)" in text
    long = report.page([run("long", response="x" * 5000)], samples=1)
    assert "x" * 2000 + "… (3,000 characters more)" in long
    assert "x" * 2001 not in long


def test_a_run_that_goes_on(run):
    path = run()
    for name in ("evals.jsonl", "result.json"):
        (path / name).unlink()
    assert Page(report.page([path], samples=1)).cells.count("–") >= 6


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
