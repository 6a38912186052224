"""No text moves the cursor, no reader that leaves ends a program; what is printed."""

import io
import subprocess
import sys

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
        "step   7/120  epoch  1.50  reward  0.412  kl  1.2e-04  seconds   3.00"
    )
    assert console.step_line(
        7, {"accuracy": 0.5, "kl": None, "tokens_per_second": 12345}
    ) == ("step     7  accuracy 50.00%  kl        -  tokens/s   12,345")
    other = dict(values, reward=-0.5, kl=3e-12, seconds=123.4, epoch=12.25)
    assert len(console.step_line(99, other, num_steps=120)) == len(
        console.step_line(7, values, num_steps=120)
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_and_elsewhere(capsys):
    terminal, file, quick = Terminal(), io.StringIO(), io.StringIO()
    with console.progress("rollout", 4, unit="wave", stream=terminal) as advance:
        for _ in range(4):
            advance()
    assert "rollout" in terminal.getvalue() and "\r" in terminal.getvalue()
    with console.progress("rollout", 4, unit="wave", every=0, stream=file) as advance:
        advance(0)
        advance()
        advance(3)
    assert file.getvalue() == (
        "rollout 0/4 waves, 0 s\n"
        "rollout 1/4 waves, 0 s, 0 s left\n"
        "rollout 4/4 waves, 0 s, 0 s left\n"
    )
    with console.progress("rollout", stream=quick) as advance:
        advance()
    assert quick.getvalue() == ""
    console.say("step 1")
    assert capsys.readouterr().out == "step 1\n"
