"""The page of a run: whole, alone, and safe from what a policy wrote."""

import base64
import gzip
import hashlib
import html.parser
import json
import re
import runpy
import subprocess
import sys
import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import ROOT

from limr_jax.algorithms import lim
from limr_jax.errors import InputError
from limr_jax.samplers.lim import online_lim
from limr_jax.storage import metrics, rollout_dump
from limr_jax.storage.workdir import claim, release, write_result
from limr_jax.studies import (
    html_report,
    html_report_lim,
    html_report_rollouts,
    html_report_runs,
    html_report_verdict,
)

EVIL = "</pre><script>alert('x')</script>&lt; \x00\x1b[31m \ud800 <!-- \u202e"
WEB = ROOT / "limr_jax/assets/web"
SCRIPTS = ("uplot.js", "tanstack_table.js", "temml.js", "report.js")


@pytest.fixture
def run(tmp_path):
    """(name, learning rate, …) → the workdir of a run of three steps."""

    def make(name="run", rate=0.01, response="1 + 1 = 2", seed=0, after=0.625):
        path = tmp_path / name
        config = {"num_steps": 3, "optimizer": {"learning_rate": rate}, "seed": seed}
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
            for step, accuracy in ((0, 0.25), (3, after)):
                log.evaluation(
                    step,
                    {"accuracy": accuracy, "well_formed": 1.0, "response_length": 7.5}
                    | {"accuracy_level_1": accuracy / 2},
                )
        write_result(path, {"seconds": 12.5, "eval_problems": 200})
        return path

    return make


class Page(html.parser.HTMLParser):
    """The elements, the cells of tables, the texts in <pre>, what is loaded.

    `scripts` are those that run, `data` the packed values of those that do not.
    """

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.pre, self.loads = [], [], [], []
        self.scripts, self.data, self.policy, self._name = [], {}, "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attrs = dict(attrs)
        if attrs.get("http-equiv") == "Content-Security-Policy":
            self.policy = attrs["content"]
        if tag == "script":
            self._name = attrs.get("id") if attrs.get("type") else ""
        self.loads += [x for x in (attrs.get("src"), attrs.get("href")) if x]

    def handle_data(self, data):
        last = self.tags[-1] if self.tags else ""
        if last in ("td", "th"):
            self.cells.append(data)
        elif last == "pre":
            self.pre.append(data)
        elif last == "script" and self._name == "":
            self.scripts.append(data)
            self._name = None
        elif last == "script" and self._name:
            self.data[self._name] = json.loads(zlib.decompress(base64.b64decode(data)))
            self._name = None


def test_a_page_says_what_the_run_came_to(run):
    path = run()
    text = html_report.page([path], samples=4)
    page = Page(text)
    assert len(text) < 450_000
    assert html_report.page([path], samples=4) == text  # nothing of a clock
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
    parsed = Page(text)
    assert len(parsed.scripts) == len(SCRIPTS) and "b" not in parsed.tags
    for character in ("\x00", "\x1b", "\ud800", "\u202e"):
        assert character not in text
        assert f'<span class="u">U+{ord(character):04X}</span>' in text
    assert "&lt;/pre&gt;&lt;script&gt;alert(&#x27;x&#x27;)" in text
    # The data is base64 alone; the whole text is in it, as it was.
    assert re.findall(r"alert\('x'\)", text) == []
    assert parsed.data["texts-0-0"]["rows"][0][1] == EVIL
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
        (["run", "--out=no/where.html"], "no/where.html: no such folder; make it"),
        (["run", "--out=/dev/null"], "--out /dev/null is a pipe, a device or a link"),
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
                missing = "result.json" in text.partition('<h2 id="results">')[0]
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
    missing = text.partition("<h2>Missing</h2>")[2].partition('<h2 id="results">')[0]
    assert "/rollouts: lacks rollouts of 1 of 3 steps, first 3;" in missing
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


def test_the_policy_lets_these_scripts_run_and_nothing_else(run):
    text = html_report.page([run()], samples=1)
    page = Page(text)
    rules = dict(x.strip().split(" ", 1) for x in page.policy.split(";"))
    assert rules["default-src"] == "'none'" and "connect-src" not in rules
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(x.encode()).digest()).decode()}'"
        for x in page.scripts
    ]
    assert rules["script-src"].split() == hashes and len(hashes) == len(SCRIPTS)
    # Each library is below its licence, and is what its sum says.
    for name, script in zip(SCRIPTS, page.scripts):
        assert script.endswith((WEB / name).read_text())
        assert ("Permission is hereby granted" in script) == (name != "report.js")
    sums = [line.split() for line in (WEB / "SHA256SUMS").read_text().splitlines()]
    assert {name for _, name in sums} == {*SCRIPTS[:-1], "uplot.css"}
    for digest, name in sums:
        assert hashlib.sha256((WEB / name).read_bytes()).hexdigest() == digest
    assert not [
        path
        for path in WEB.glob("*.[jc]s*")
        if re.search(r"</script|<!--|\r", path.read_text(), re.I)
    ]
    ours = (WEB / "report.js").read_text()
    assert not re.search("innerHTML|outerHTML|insertAdjacentHTML|document.write", ours)


def test_runs_that_differ_in_the_seed_are_one_group(run):
    paths = [run("a"), run("b", seed=1, after=0.645), run("c", rate=0.5, after=0.2)]
    text = html_report.page(paths, samples=0)
    # By hand: gains .375 and .395, t = 12.706, s / sqrt(2) = .01.
    assert "held-out accuracy 25.0 % before, 63.5 % at step 3" in text
    assert "+38.5 points [25.8, 51.2]" in text and "over 2 seeds" in text
    assert "Not shown that it learned: the interval holds 0" in text
    assert "c − a, b (2 seeds), accuracy after: -42.5 points, one seed" in text
    data = Page(text).data["summary"]
    assert data["groups"] == ["a, b (2 seeds)", "c"]
    (chart,) = (
        x
        for x in data["sections"][0]["charts"]
        if x["title"] == "Pass rate of the rollouts"
    )
    whole = [x for x in chart["series"] if not x.get("thin")]
    assert [x["y"] for x in whole] == [[0.25, 0.5, 0.75]] * 2
    assert whole[0]["low"] == [0.25, 0.5, 0.75] and "low" not in whole[1]


@pytest.mark.parametrize(
    ("before", "after", "count", "word", "said"),
    [
        (0.25, 0.625, 200, "learned", "+37.5 points [28.1, 45.9]"),
        (0.625, 0.25, 200, "worse", "-37.5 points [-45.9, -28.1]"),
        (0.25, 0.28, 200, "unknown", "+3.0 points [-5.6, 11.6]"),
        (0.25, 0.625, 0, "unknown", "+37.5 points (95 %"),
    ],
)
def test_the_verdict_of_one_run(run, before, after, count, word, said):
    """The interval is Newcombe's tenth (1998), of two independent shares."""
    path = run(after=after)
    evals = (path / "evals.jsonl").read_text().replace("0.25,", f"{before},", 1)
    (path / "evals.jsonl").write_text(evals)
    write_result(path, {"seconds": 1.0} | ({"eval_problems": count} if count else {}))
    (group,) = html_report_runs.groups([html_report_runs.read_run_files(path)])
    found, lines = html_report_verdict.group_verdict(group, {})
    assert found == word and said in lines[0]


def test_without_an_evaluation_the_verdict_is_of_problems_met_twice(tmp_path):
    path = tmp_path / "run"
    claim(path, {"config": {"num_steps": 2}})
    release(path)
    dump = rollout_dump.Dump(path)
    with metrics.Metrics(path) as log:
        for step, right in ((1, 5), (2, 15)):
            log.step(step, {"pass_rate": right / 20})
            dump.add(step, [graded(f"p{i}", i < right) for i in range(20)])
    text = html_report.page([path], samples=0)
    # Bonett and Price of 10 won and 10 equal: 10 / 22 ± 1.96 · .1241.
    assert "It learned on its own training problems" in text
    assert (
        "25.0 % at first visits, 75.0 % at last ones, +50.0 points [21.1, 69.8]" in text
    )
    assert "not finished: step 2 of 2" in text


def graded(name, right, **more):
    row = {"id": name, "sample": 0, "prompt": name, "response": "r", "reference": "1"}
    row |= {"reward": float(right), "correct": float(right), "valid": True}
    return row | {"reason": "graded", "truncated": False, "length": 1} | more


def test_what_went_wrong_is_said(run):
    path = run()
    lines = [json.loads(x) for x in (path / "metrics.jsonl").read_text().splitlines()]
    for row, more in zip(
        lines,
        (
            {"loss": None, "mismatch/log_weight": 0.01, "nonfinite_share": 1.0},
            {"loss": 1.0, "mismatch/log_weight": 0.02, "nonfinite_share": 0.0},
            {"invalid_share": 0.6},
        ),
    ):
        row |= {"invalid_share": 0.0} | more
    (path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    text = html_report.page([path], samples=0)
    # The run is older than alarms: they are judged by today's limits, each once.
    assert text.count("differ by 0.01 nats a token, above alarms.drift=0.005") == 1
    assert "step 3, invalid_rollouts: 20.0% of the rollouts" in text
    assert "loss is no finite number in 1 steps, first 1" in text
    assert "nonfinite_share: above 0 in 1 steps, first 1" in text
    # What the run itself has warned of, and that alone.
    warning = {"step": 2, "name": "drift", "text": "<b>too far</b> \u202e"}
    (path / "warnings.jsonl").write_text(json.dumps(warning) + "\n{\n")
    text = html_report.page([path], samples=0)
    assert "step 2, warning drift: &lt;b&gt;too far&lt;/b&gt; <span" in text
    assert "above alarms.drift" not in text.partition("<h2>Missing")[0]
    assert f"{path}/warnings.jsonl: 1 lines cannot be read" in text


def test_lim_on_the_page_is_the_samplers_own(tmp_path):
    """Scores and weights after each epoch, from a dump, are those of the online one."""
    problems, prompts, group, path = 10, 4, 4, tmp_path / "run"
    weights = partial(lim.threshold_weight, threshold=0.6, floor=0.05)
    sampler = online_lim(
        problems=problems,
        prompts=prompts,
        key=jax.random.key(0),
        warmup_epochs=1,
        weights=weights,
    )
    sample, update = jax.jit(sampler.sample), jax.jit(sampler.update)
    report = jax.jit(sampler.report)
    config = {"num_steps": 9, "sampler": {"name": "lim", "lim": {"threshold": 0.6}}}
    claim(path, {"config": config})
    release(path)
    dump, random = rollout_dump.Dump(path), np.random.default_rng(0)
    state, ends = sampler.init(), {}
    with metrics.Metrics(path) as log:
        for step in range(1, 10):
            state, ids_P = sample(state, jax.random.key(step))
            chance_P = (np.asarray(ids_P) + step) / (problems + 10)
            correct_PG = random.random((prompts, group)) < chance_P[:, None]
            valid_PG = random.random((prompts, group)) < 0.8
            epoch = float(report(state, ids_P)["epoch"])
            dump.add(
                step,
                [
                    graded(f"p{n}", right, sample=g, valid=bool(valid))
                    for n, *both in zip(ids_P, correct_PG, valid_PG)
                    for g, (right, valid) in enumerate(zip(*both))
                ],
            )
            log.step(step, {"epoch": epoch, "rollouts": prompts * group})
            state = update(state, ids_P, jnp.float32(correct_PG), jnp.array(valid_PG))
            ends[int(state.scored_epochs)] = jax.device_get(state)
    run = html_report_runs.read_run_files(path)
    found = html_report_lim.history(run, html_report_rollouts.read_rollouts(path))
    order = [int(name[1:]) for name in found.ids]
    assert len(ends) == 4 and found.score_NE.shape == (problems, 3)
    for epoch in (1, 2, 3):
        state = ends[epoch]
        score_N = np.where(state.seen_N, state.score_N, -np.inf)[order]
        np.testing.assert_allclose(found.score_NE[:, epoch - 1], score_N, rtol=1e-5)
        np.testing.assert_array_equal(
            found.weight_NE[:, epoch - 1], state.weight_N[order]
        )
    page = html_report.page([path], samples=0)
    kept = int((ends[3].score_N[ends[3].seen_N] >= 0.6).sum())
    assert f"{kept} of 10 problems score 0.6 or more after 3 epochs" in page
    charts = [
        chart["title"]
        for section in Page(page).data["summary"]["sections"]
        for chart in section["charts"]
    ]
    for title in ("Scores after the last epoch", "Drift of the weights"):
        assert f"run: {title}" in charts


def test_a_page_holds_so_many_rollouts_evenly(tmp_path):
    path = tmp_path / "run"
    claim(path, {"config": {"num_steps": 10}})
    release(path)
    dump = rollout_dump.Dump(path)
    with metrics.Metrics(path) as log:
        for step in range(1, 11):
            log.step(step, {"pass_rate": 0.5})
            level = {"level": step % 2 + 1}
            rows = [graded(f"p{i}", i % 3 == 0, **level) for i in range(300)]
            rows[0]["response"] = "x" * 10**6
            dump.add(step, rows)
    text = html_report.page([path], samples=0, rollouts=1000)
    data = Page(text).data
    (table,) = data["rollout-columns"]
    assert table["of"] == 3000 and sorted(set(table["step"])) == [1, 5, 10]
    assert len(table["step"]) == 900 == sum(table["chunk"])
    whole = data["texts-0-0"]["rows"][0][1]
    assert whole == "x" * 20_000 + "… (980,000 characters more)"
    titles = [section["title"] for section in data["summary"]["sections"]]
    for title in ("By pass rate", "By level", "Pass rate of the rollouts by level"):
        assert f"What was drawn: {title}" in titles
    assert "<h2>Rollouts" in html_report.page([path], samples=0, rollouts=0)


def test_the_compile_report_is_on_the_page(run):
    path = run()
    report = {"programs": [{"name": "generate<b>", "total_gib": 7.5}, 3], "fits": True}
    path.with_name("run.compile.json").write_text(json.dumps(report))
    path.with_name("run.plan.json").write_text("{")
    text = html_report.page([path], samples=0)
    cells = Page(text).cells
    assert cells[cells.index("generate<b>") + 1] == "7.5"
    assert "fits = True" in text
    assert "run.plan.json cannot be read" in text.partition("<h2>Compile")[0]
