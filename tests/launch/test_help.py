"""--help of each launch script names every flag, what it means and its default, the
exit codes, and a command to begin with."""

import argparse
import importlib.util
import re

import pytest
from tiny_run import ROOT

from limr_jax import errors
from limr_jax.config import load

SCRIPTS = sorted((ROOT / "launch").glob("*.py"))
# Each of a script's own verbs has a --help as well.
VERBS = {
    "data": ["describe", "list"],
    "lim": ["score", "select", "replay"],
    "texts": ["short", "plans", "sums", "right"],
}
COMMANDS = [
    (path, verb) for path in SCRIPTS for verb in ["", *VERBS.get(path.stem, [])]
]


@pytest.fixture
def parsers(monkeypatch):
    """All parsers that are made; and what `load.load` was given, as a dict."""
    made = []

    class Noted(load.Parser):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(load, "Parser", Noted)
    return made


def module(path):
    spec = importlib.util.spec_from_file_location(f"launch_{path.stem}", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize(
    ("path", "verb"), COMMANDS, ids=[f"{x.stem} {verb}".strip() for x, verb in COMMANDS]
)
def test_help_is_whole(path, verb, parsers, capsys):
    with pytest.raises(SystemExit) as ended:
        module(path).main([*([verb] if verb else []), "--help"])
    assert not ended.value.code
    text, err = capsys.readouterr()
    assert err == ""
    assert text.rstrip().endswith(errors.exit_codes())
    # Of a verb the script's own --help has the example.
    assert verb or f"python launch/{path.name}" in text
    if parsers:
        # The script's own is made first.
        check_parser(next(x for x in parsers if x.prog.endswith(verb)), text)
    else:
        check_flags(text)


def check_parser(parser: argparse.ArgumentParser, text: str) -> None:
    """argparse's: each argument has a meaning, and a default if it may be left out."""
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            continue  # the script's own, as it calls itself
        name = action.option_strings[-1] if action.option_strings else None
        if isinstance(action, argparse._SubParsersAction):
            assert action.choices
            continue
        assert action.help, f"{parser.prog}: {name or action.dest} has no meaning"
        if name and name != "--help":
            assert re.search(rf"^  .*{name}\b", text, re.M)
            switch = action.nargs == 0
            given = action.default not in (None, "", [])
            of_group = any(
                action in group._group_actions and group.required
                for group in parser._mutually_exclusive_groups
            )
            assert (
                action.required
                or switch
                or given
                or of_group
                or "default" in action.help
            ), f"{parser.prog} {name}: what is its default?"


def check_flags(text: str) -> None:
    """`load.load`'s: each flag has a line with its default, and a meaning above."""
    above, _, below = text.partition("\nflags:\n")
    names = re.findall(r"^  --(\w+) ", below, re.M)
    assert {"config", "workdir", "dry_run"} <= {*names}
    for name in names:
        (line,) = re.findall(rf"^  --{name} .*$", below, re.M)
        assert "(default: " in line or "the same as --config." in line
        if "see above" in line:
            assert re.search(rf"--{name}\b", above), f"--{name}: what does it mean?"


def test_the_readme_has_the_exit_codes():
    page = (ROOT / "launch/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\d+)` \| (.*?) \|$", page, re.M)
    assert {int(code): meaning for code, meaning in rows} == errors.EXIT_CODES


def exit_of(monkeypatch, main) -> object:
    monkeypatch.setattr("sys.argv", ["launch/x.py"])
    with pytest.raises(SystemExit) as ended:
        load.run_main(main)
    return ended.value.code or 0


def test_the_exit_codes_are_those_documented(monkeypatch, capsys):
    """SIGTERM's 0 and another process's 1 are in test_kill.py and test_processes.py."""

    def raising(error):
        def main(argv):
            raise error

        return main

    assert exit_of(monkeypatch, lambda argv: None) == 0
    assert exit_of(monkeypatch, lambda argv: 1) == 1
    assert exit_of(monkeypatch, raising(errors.InputError("no\nsuch"))) == 2
    assert capsys.readouterr().err == "error: no such\n"
    assert exit_of(monkeypatch, raising(KeyboardInterrupt())) == 130
    # A fault of ours is an exception: Python prints it and exits with 1.
    monkeypatch.setattr("sys.argv", ["launch/x.py"])
    with pytest.raises(ZeroDivisionError):
        load.run_main(raising(ZeroDivisionError()))
