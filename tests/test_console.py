"""No text moves the cursor, no reader that leaves ends a program; what is printed."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
import unicodedata

import pytest

from limr_jax import console


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ½ 四 \u200d é\t\n", "plain ½ 四 \u200d é\t\n"),
        ("\x1b[2J\x07\r\x08", r"\x1b[2J\x07\r\x08"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("\u202egpj.exe\u2069", r"\u202egpj.exe\u2069"),
        ("\u2028\ufeff\ud800\U000e0041", r"\u2028\ufeff\ud800\U000e0041"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text, shown):
    assert console.shown(text) == shown


def test_stdout_is_guarded_while_it_lasts(capsys):
    before = sys.stdout
    with console.guarded():
        print("\x1b]0;title\x07", "→", flush=True)
        assert sys.stdout is not before and sys.stdout.isatty() is False
    assert sys.stdout is before
    assert capsys.readouterr().out == "\\x1b]0;title\\x07 →\n"


def test_letters_that_a_stream_cannot_encode():
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    stream = console.Stream(ascii_only)
    assert stream.write("→ x") == 3
    stream.flush()
    assert ascii_only.buffer.getvalue() == b"\\u2192 x"


TALKS = """
import sys
from limr_jax.config.load import run_main

def main(argv):
    for n in range(20_000):
        print("line", n)
    print("at the end", file=sys.stderr)
    return 3

run_main(main)
"""


@pytest.mark.parametrize("merged", [False, True])
def test_a_reader_that_leaves_ends_nothing(merged):
    """As `| head -1` does; its own exit code stays, and nothing is complained of."""
    started = subprocess.Popen(
        [sys.executable, "-c", TALKS],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        text=True,
    )
    with started:
        assert started.stdout.readline() == "line 0\n"
        started.stdout.close()
        said = "" if merged else started.stderr.read()
        assert started.wait(timeout=60) == 3
    assert said == ("" if merged else "at the end\n")


def test_output_on_a_full_disk_is_said_once():
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", TALKS],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert ended.returncode == 3
    assert ended.stderr == (
        "warning: output is lost (No space left on device)\nat the end\n"
    )


def test_a_line_by_hand():
    values = {"reward": 0.4125, "kl": 1.2e-4, "seconds": 3.0, "epoch": 1.5, "other": 9}
    assert console.step_line(7, values, num_steps=120) == (
        "step   7/120  reward  0.412  kl  1.2e-04  seconds   3.00"
    )
    assert console.step_line(
        7, {"accuracy": 0.5, "entropy": None, "tokens_per_second": 12345}, left=5000
    ) == ("step     7  held-out  50.0%  entropy      -  tokens/s   12,345  left 83 min")
    other = dict(values, reward=-0.5, kl=3e-12, seconds=123.4, epoch=12.25)
    assert len(console.step_line(99, other, num_steps=120)) == len(
        console.step_line(7, values, num_steps=120)
    )


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (
            {"reward": 1, "pass_rate": 1, "accuracy": 0.5, "response_length": 7}
            | {"kl": 0.1, "entropy": 2, "tokens_per_second": 9, "seconds": 1, "loss": 1}
            | {"drift": 0, "gradient_norm": 1},
            ["reward", "held-out", "length", "kl", "tokens/s"],
        ),
        # JEPO has no reward, and its entry says so with null.
        ({"reward": None, "jepo/bound": -3, "entropy": 1}, ["bound", "entropy"]),
        (
            {"loss": 1, "entropy": 1, "gradient_norm": 1, "seconds": 1, "tokens": 9},
            ["loss", "gradient", "entropy", "seconds"],
        ),
    ],
)
def test_five_numbers_and_no_more(values, labels):
    line = console.step_line(3, values, num_steps=9, left=10)
    assert line.replace("/9", "").split()[2:-3:2] == labels
    assert line.endswith("  left 10 s")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (3600, "60 min"), (5460, "1 h 31 min")]
    + [(11_100, "3 h 05 min"), (48 * 3600, "2 d 0 h"), (200_000, "2 d 8 h")],
)
def test_a_time_in_its_two_largest_units(seconds, text):
    assert console.duration(seconds) == text


def test_the_time_left_knows_nothing_of_the_compilation():
    now = [1000.0]
    left = console.TimeLeft(100, lambda: now[0])
    # Taken up after step 40: reading, compiling and the first step took 1,000 s.
    assert left.after(41, 900.0) is None
    for step in (42, 43, 44):
        now[0] += 10
        assert left.after(step, 10.0) == pytest.approx((100 - step) * 10)
    # An evaluation of 40 s within the next: 8 s a step more, over five steps since.
    now[0] += 60
    assert left.after(46, 10.0) == pytest.approx(54 * (10 + 40 / 5), rel=0.3)
    assert left.after(100, 10.0) == 0


def test_the_time_left_follows_steps_that_grow_longer():
    now = [0.0]
    left = console.TimeLeft(1000, lambda: now[0])
    left.after(1, 5.0)
    for step in range(2, 202):
        seconds = 10.0 if step <= 100 else 30.0
        now[0] += seconds
        last = left.after(step, seconds)
    assert last == pytest.approx(799 * 30)


def test_the_time_left_of_steps_that_are_logged_now_and_then():
    """Fine-tuning logs every 50 updates, and does not say how long one took."""
    now = [0.0]
    left = console.TimeLeft(1000, lambda: now[0])
    assert left.after(50) is None
    for step in (100, 150):
        now[0] += 25
        assert left.after(step) == pytest.approx((1000 - step) / 2)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_elsewhere_than_on_a_terminal(capsys):
    file, quick, silent = io.StringIO(), io.StringIO(), io.StringIO()
    with console.progress("rollout", 4, unit="wave", every=0, stream=file) as advance:
        advance(0)
        advance()
        advance(3)
        advance(0, left=3600)
    assert file.getvalue() == (
        "rollout 0/4 waves, 0 s\n"
        "rollout 1/4 waves, 0 s, 0 s left\n"
        "rollout 4/4 waves, 0 s, 0 s left\n"
        "rollout 4/4 waves, 0 s, 60 min left\n"
    )
    with console.progress("rollout", stream=quick) as advance:
        advance()
    with console.progress("rollout", 4, every=None, stream=silent) as advance:
        advance()
    assert quick.getvalue() == silent.getvalue() == ""
    console.say("step 1")
    assert capsys.readouterr().out == "step 1\n"


def test_a_long_phase_is_a_line(monkeypatch):
    short, long = io.StringIO(), io.StringIO()
    with console.phase("reading", stream=short):
        pass
    monkeypatch.setattr(console, "_LONG", 0)
    with console.phase("reading \x1b[2J", stream=long):
        pass
    assert short.getvalue() == "" and long.getvalue() == "reading \\x1b[2J: 0 s\n"


@pytest.mark.parametrize(
    ("variables", "bars", "colours"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, False, False),
        ({}, False, False),
    ],
)
def test_what_the_terminal_may_be_told(monkeypatch, variables, bars, colours):
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(console, "_LATE", 0)
    terminal = Terminal()
    assert console.is_terminal(terminal) is bars
    painted = console.painted("warning:", "33", terminal)
    assert painted == ("\x1b[33mwarning:\x1b[0m" if colours else "warning:")
    assert console.painted("warning:", "33", io.StringIO()) == "warning:"
    with console.progress("rollout", 4, stream=terminal) as advance:
        advance()
    assert ("rollout  25%" in terminal.getvalue()) is bars
    assert ("\r" in terminal.getvalue()) is bars
    assert not terminal.getvalue().endswith("rollout")


# What a run prints: phases, steps within a bar, an evaluation within, a warning.
PHASES = """
import sys, time
from limr_jax import console
console._speaks = lambda: True
console._LATE = console._TICK = 0.01
with console.guarded():
    with console.phase("reading weights"):
        time.sleep(0.05)
    left = console.TimeLeft(3)
    with console.progress("train", 3, every=None) as tick:
        for step in (1, 2, 3):
            time.sleep(0.03)
            values = {"reward": 0.5, "accuracy": 0.25, "response_length": 123.0,
                      "entropy": 0.7, "tokens_per_second": 12345.0}
            more = left.after(step, 0.03)
            console.say_step(step, values, num_steps=3, left=more)
            tick(left=more)
            label = "evaluate \u56db\u56db\u56db a set with a long name"
            with console.progress(label, 20, unit="problem") as advance:
                for _ in range(20):
                    time.sleep(0.002)
                    advance()
        console.warn("of \x1b[2J")
    console.say("done \x1b[31m")
"""


def on_a_terminal(code: str, columns: int, **variables) -> str:
    """All that a program writes on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color"} | variables
    environment.pop("NO_COLOR", None) if "NO_COLOR" not in variables else None
    started = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while data := os.read(ours, 65536):
            written += data
    os.close(ours)
    assert started.wait(60) == 0, written.decode()
    return written.decode()


def screen(written: str, columns: int) -> list[str]:
    """The lines that a terminal shows at the end; a wrapped one is an error."""
    lines, place = [[]], 0
    for part in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|.|\n", written, re.S):
        if part == "\r":
            place = 0
        elif part == "\n":
            lines.append([])
        elif part == "\x1b[K":
            del lines[-1][place:]
        elif part.startswith("\x1b"):
            assert part.endswith("m"), part  # a colour: no other sequence is used
        else:
            wide = unicodedata.east_asian_width(part) in "WF"
            lines[-1][place : place + 1 + wide] = [part] + [""] * wide
            place += 1 + wide
            assert place < columns, "".join(lines[-1])
    return ["".join(line) for line in lines]


@pytest.mark.parametrize("columns", [40, 20, 200])
def test_no_bar_is_wrapped_and_none_is_left(columns):
    written = on_a_terminal(PHASES, columns)
    bars = written.split("\x1b[K")
    assert any(bar.startswith("reading weights") for bar in bars)
    assert any(bar.startswith("train") for bar in bars)
    assert any(bar.startswith("evaluate") for bar in bars)
    # The phase within takes the place of the one around it: one bar at a time.
    assert not any("train" in bar and "evaluate" in bar for bar in bars)
    assert "\x1b[33mwarning:\x1b[0m" in written
    shown = screen(written, columns)
    assert shown[-3:] == ["warning: of \\x1b[2J", "done \\x1b[31m", ""]
    # On a narrow one the step and the time left stay, and the first number if it can.
    full = "held-out  25.0%  length  123.0  entropy  0.700  tokens/s   12,345  "
    reward = "reward  0.500  " if columns >= 40 else ""
    numbers = reward + (full if columns == 200 else "")
    assert shown[:3] == [
        f"step 1/3  {numbers}".strip(),
        # The second is the first of which something is known.
        *(line for line in shown[1:2] if line.startswith(f"step 2/3  {numbers}left ")),
        f"step 3/3  {numbers}left 0 s",
    ]


def test_no_colours_where_they_are_unwanted():
    written = on_a_terminal(PHASES, 200, NO_COLOR="1")
    assert set(re.findall(r"\x1b\[[^A-Za-z]*[A-Za-z]", written)) == {"\x1b[K"}
    dumb = on_a_terminal(PHASES, 200, TERM="dumb")
    assert "\x1b" not in dumb and "\r" not in dumb.replace("\r\n", "")


def test_a_pipe_gets_lines_and_no_control_sequence():
    ended = subprocess.run(
        [sys.executable, "-c", PHASES], capture_output=True, timeout=60
    )
    assert ended.returncode == 0
    for stream in (ended.stdout, ended.stderr):
        assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", stream)
    assert ended.stdout.decode().splitlines()[0] == (
        "step 1/3  reward  0.500  held-out  25.0%  length  123.0  entropy  0.700  "
        "tokens/s   12,345"
    )
    assert ended.stderr.decode().splitlines() == ["warning: of \\x1b[2J"]


def test_no_thread_is_left_behind(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    before = threading.active_count()
    for _ in range(20):
        with console.progress("rollout", 4, stream=Terminal()) as advance:
            advance()
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.02)
    assert threading.active_count() <= before
