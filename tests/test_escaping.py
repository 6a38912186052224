"""What a policy or a data set wrote is text, wherever it is shown.

On a terminal, in warnings and beside a bar, in Markdown, in TensorBoard, in pictures.
The HTML page has its own tests (studies/test_html_report.py).
"""

import fcntl
import io
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
import warnings

import pytest
from fuzz import HURTFUL_TEXTS
from tensorboardX.proto import event_pb2
from tiny_run import ROOT

from limr_jax import console
from limr_jax.errors import InputError, one_line
from limr_jax.storage import files, metrics
from limr_jax.studies import markdown, plots, tables

HOSTILE = "\x1b[2J\x9b31m\u202egpj\r\x08<script>alert(1)</script>\n| $\\frac$ `x` \0"


def obeyed(text: str) -> list[str]:
    """What a terminal would obey in the text, but for new lines and tabs."""
    return [x for x in console.UNSHOWN.findall(text) if x not in "\n\t"]


# --- Terminals ------------------------------------------------------------------------

TALKS = """
import sys, time, warnings
from limr_jax import console
from limr_jax.config.load import run_main
from limr_jax.errors import InputError

HOSTILE = {hostile!r}

def main(argv):
    print(HOSTILE)
    print(HOSTILE, file=sys.stderr)
    console.say(HOSTILE)
    console.warn(HOSTILE + "x" * 10**6)
    with console.progress(HOSTILE, 3) as advance:
        for _ in range(3):
            advance()
            time.sleep(0.3)
            console.say("said " + HOSTILE)
            console.warn("warned " + HOSTILE)
    warnings.warn(HOSTILE)
    {ends}

run_main(main)
"""
ENDS = ["raise InputError(HOSTILE * 10**5)", "raise ValueError(HOSTILE)", "return 0"]


def in_a_terminal(script: str) -> tuple[int, str]:
    """(exit code, all that the terminal got) of a Python script."""
    try:
        mine, its = pty.openpty()
    except OSError as error:  # a folder that is another system's root has none
        pytest.skip(f"this machine gives no terminal ({error})")
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=its,
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm", "NO_COLOR": "1"},
    )
    os.close(its)
    got, deadline = b"", time.monotonic() + 120
    while time.monotonic() < deadline:
        if select.select([mine], [], [], 1)[0]:
            try:
                piece = os.read(mine, 2**16)
            except OSError:  # Linux's end of a terminal
                break
            if not piece:
                break
            got += piece
    os.close(mine)
    return child.wait(timeout=60), got.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    "ends", [ENDS[0], *(pytest.param(x, marks=pytest.mark.soak) for x in ENDS[1:])]
)
def test_a_terminal_obeys_nothing_but_the_bar(ends):
    code, got = in_a_terminal(TALKS.format(hostile=HOSTILE, ends=ends))
    assert code == dict(zip(ENDS, [2, 1, 0]))[ends]
    # The bar is taken away and redrawn; that is all that anybody obeyed.
    assert "\r\x1b[K" in got
    got = got.replace("\r\x1b[K", "\n")
    assert not obeyed(got), ascii(got[-500:])
    assert "\\x1b[2J\\x9b31m\\u202egpj\\r\\x08<script>" in got
    assert ("Traceback (most recent call last):" in got) == (ends == ENDS[1])
    for line in got.replace("\r", "\n").split("\n"):
        assert len(line) < 3_000, f"{len(line):,} characters"
    if ends == ENDS[0]:
        (last,) = [x for x in got.replace("\r", "\n").split("\n") if "error: " in x]
        assert last.startswith("error: \\x1b[2J") and len(last) <= 2_500


@pytest.mark.parametrize("text", HURTFUL_TEXTS, ids=ascii)
def test_a_warning_is_one_line_whatever_is_in_it(text, capsys):
    console.warn(f"the id {text} is there twice")
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("warning: the id ")
    assert not obeyed(err) and len(err) < 2_100
    console.say(text)
    assert not obeyed(capsys.readouterr().out)
    line = one_line(InputError(f"{text}: give another"))
    assert "\n" not in line and len(line) < 2_100 and line.endswith(": give another")


def test_a_bar_is_taken_away_before_a_line_is_written(monkeypatch):
    """Through the guarded stream, which the bar alone may make obey."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(console, "_LATE", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    with console.guarded(), console.progress("train\x1b[2J", 2) as advance:
        advance()
        console.warn("a line\x1b[2J")
    got = terminal.getvalue()
    assert "\x1b[2J" not in got and "train\\x1b[2J" in got
    # On a line of its own: the bar before it was taken away.
    assert "\r\x1b[Kwarning: a line\\x1b[2J\n" in got, ascii(got)


# --- Markdown -------------------------------------------------------------------------


@pytest.mark.parametrize("text", [HOSTILE, *HURTFUL_TEXTS], ids=ascii)
def test_a_table_has_as_many_cells_whatever_is_in_them(text):
    page = markdown.table(
        ["arm", "p", "command"], [[text, "< .001", markdown.code(text)]]
    )
    lines = page.split("\n")
    assert len(lines) == 3 and not obeyed(page)
    assert len(re.findall(r"(?<!\\)\|", lines[2])) == 4
    assert "| < .001 |" in lines[2]
    cell = re.split(r"(?<!\\)\|", lines[2])[1]
    assert not re.search(r"<[A-Za-z/!?]", cell)
    for shown in (markdown.text(text), markdown.code(text)):
        assert "\n" not in shown and len(shown) < 2_100 and not obeyed(shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("lim_top-8 (a=0.5)", "lim_top-8 (a=0.5)"),
        ("62.5 [60.1, 64.9]", "62.5 [60.1, 64.9]"),
        ("![x](http://a/b.png)", "![x\\](http://a/b.png)"),
        ("[x]: http://a", "[x\\]: http://a"),
        ("<img src=x>", "&lt;img src=x>"),
        ("# heading\n\n* item", "\\# heading * item"),
        ("-0.5", "-0.5"),
    ],
)
def test_text_in_markdown(text, shown):
    assert markdown.text(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a b", "`a b`"), ("a `b`", "`` a `b` ``"), ("a\nb``c", "```a b``c```")],
)
def test_code_in_markdown(text, shown):
    assert markdown.code(text) == shown


def test_a_page_of_arms_that_failed(tmp_path):
    """Names, commands and errors of runs, as ablate.py and limr.py write them."""
    figure = dict.fromkeys(("mean", "low", "high", "deviation"))
    figure |= {"seeds": 0, "difference": None, "resolvable": None}
    figures = dict.fromkeys([*tables.FIGURES, "accuracy_at_tokens"], figure)
    summary = {
        "title": HOSTILE,
        "command": HOSTILE,
        "tokens": 0,
        "arms": {HOSTILE: figures},
        "comparisons": {"accuracy": 0},
        "resolvable": {"accuracy": None},
        "runs": [
            {"arm": HOSTILE, "seed": 0, "figures": None, "error": HOSTILE}
            | {"commits": (), "command": HOSTILE, "folder": "x"}
        ],
    }
    page = tables.markdown(summary, ())
    assert not obeyed(page)
    without_code = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", page)
    assert "<script" not in without_code
    assert page.count("\n# ") + page.startswith("# ") == 1
    tables_of_page = re.findall(r"((?:^\|.*\n?)+)", page, re.M)
    assert len(tables_of_page) == 2
    for lines in tables_of_page:
        cells = [len(re.findall(r"(?<!\\)\|", x)) for x in lines.strip().split("\n")]
        assert len(cells) == 3 and len({*cells}) == 1


# --- TensorBoard and JSON -------------------------------------------------------------


def tags(workdir) -> list[str]:
    """The names in TensorBoard's file, as protobuf reads them."""
    (path,) = (workdir / "tensorboard").iterdir()
    data, names = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        names += [value.tag for value in event.summary.value]
        data = data[16 + size :]
    return names


def test_tags_of_levels_that_may_be_any_text(tmp_path, capsys):
    texts = [HOSTILE, *HURTFUL_TEXTS, "x" * 2**20 + "y"]
    with metrics.Metrics(tmp_path) as log:
        log.evaluation(1, {f"accuracy_level_{text}": 0.5 for text in texts})
        log.step(1, {"reward": 1e300, "kl": -1e39, "huge": 10**400, "n": 1})
    assert capsys.readouterr().err == ""
    names = tags(tmp_path)
    levels = [name for name in names if name.startswith("eval/accuracy_level_")]
    assert len(levels) == len(texts)
    assert all(len(x) < 250 and not obeyed(x) and "\n" not in x for x in names)
    assert names.count("eval/accuracy_level_" + "x" * 180 + "…") == 0
    assert len({x for x in levels if x.startswith("eval/accuracy_level_xxx")}) == 2
    # JSON keeps the whole name; a resumed run writes the same tags from it.
    (row,) = metrics.read_metrics(tmp_path, metrics.EVALS)
    assert {x.removeprefix("accuracy_level_") for x in row if x != "step"} == {*texts}
    with metrics.Metrics(tmp_path, step=1):
        assert sorted(tags(tmp_path)) == sorted(names)


def test_rows_of_a_file_hold_nothing_that_cat_would_obey(tmp_path):
    rows = [
        {"id": text, text: [text, {"a": text}]} for text in [HOSTILE, *HURTFUL_TEXTS]
    ]
    files.write_rows(tmp_path / "a.jsonl", rows)
    content = (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    assert not obeyed(content)
    assert [json.loads(line) for line in content.splitlines()] == rows
    files.write_text(tmp_path / "b.md", "".join(HURTFUL_TEXTS))  # no half character


@pytest.mark.parametrize("text", [HOSTILE, *HURTFUL_TEXTS], ids=ascii)
def test_any_text_names_a_folder_beside_the_others(text):
    name = files.folder_name(text)
    assert name.isprintable() and len(name.encode()) < 250
    assert "/" not in name and name not in ("", ".", "..")


# --- Pictures -------------------------------------------------------------------------


def drawn(figure, path) -> None:
    """Saved without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.save(figure, path.with_suffix(".png"))
        assert path.with_suffix(".png").stat().st_size > 1_000


def test_names_in_pictures_are_names(tmp_path):
    texts = [HOSTILE, "", "_a", "$$$", "$\\frac$", "\ud800", "é漢🎲", "x" * 2**20]
    for i in range(2):
        with metrics.Metrics(tmp_path / f"run{i}") as log:
            for step in range(1, 4):
                log.step(step, {"pass_rate": 0.5, "response_length": 3.0})
    runs = {text: [tmp_path / f"run{i % 2}"] for i, text in enumerate(texts)}
    figure = plots.learning_curves(runs)
    legend = figure.axes[-1].get_legend().get_texts()
    assert len(legend) == len(texts)
    assert all(len(x.get_text()) < 100 and not obeyed(x.get_text()) for x in legend)
    drawn(figure, tmp_path / "curves")
    difference = {"mean": 0.1, "low": 0.0, "high": 0.2, "p_holm": 0.5}
    arms = {text: {"accuracy": {"difference": difference}} for text in texts}
    report = {"$x_{$": {"arms": arms}, HOSTILE: {"arms": arms}}
    drawn(plots.differences(report), tmp_path / "differences")
    row = {"value": 1, "work": 1, "growth": 1, "memory_growth": 1}
    drawn(plots.growth({HOSTILE: [row, dict.fromkeys(row, 2)]}), tmp_path / "growth")


@pytest.mark.parametrize(
    "name", ["$\\frac$", "a_$x$", "costs $5", "\\$", "_hidden", "$$"]
)
def test_a_name_with_dollars_is_drawn_as_it_is(name):
    """By matplotlib's own reading of a text: no formula, and every character there."""
    from matplotlib.text import Text

    text, kind = Text(0, 0, "")._preprocess_math(plots.plain(name))
    assert kind is not True and text.strip() == name
