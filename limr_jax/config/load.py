"""Command line → one locked configuration, checked before anything is expensive.

A config file is Python: `get_config() -> ConfigDict` with every field of base.py,
or `get_config(arg)` for `--config=file.py:arg`. `--config.a.b=value` overrides one
field and is read by the type of the field's default. absl's flags are not used:
ml_collections prints a traceback for a misspelt field, and absl's flags are global.
"""

import _thread
import argparse
import contextlib
import difflib
import os
import pathlib
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from ml_collections import ConfigDict

from limr_jax import console, platform
from limr_jax.config import config_file, limits, parse_value
from limr_jax.config.config_file import leaves
from limr_jax.errors import InputError, choose, exit_codes, one_line

_LEAVE = 10  # seconds
_FLAGS = {"config": "", "workdir": "", "dry_run": False}
_MEANINGS = {
    "config": "FILE.py, or FILE.py:ARGUMENT of its get_config",
    "workdir": "the run's folder",
    "dry_run": "say what would be done, and stop",
}


def load(
    argv: Sequence[str],
    description: str = "",
    *,
    flags: Mapping[str, bool | int | float | str] | None = None,
    short: Mapping[str, str] | None = None,
    run_config: Callable[[str], ConfigDict] | None = None,
    run_flag: str = "workdir",
    kind: str = "",
) -> tuple[ConfigDict, types.SimpleNamespace]:
    """The locked config and the options of a command line.

    argv: the arguments, without the program's name (`sys.argv[1:]`).
    flags: further flags, name → default; the default's type is the flag's type. One
    whose default is () may be given again and again: all its texts, in their order.
    short: flag → field; `--flag=x` stands for `--config.field=x`.
    run_config: workdir → its run's config, for a program that looks at runs: one of
    --config and the flag `run_flag`, which names a run, is given, not both. Where that
    is --workdir, no workdir is the default.
    kind: a name in `config_file.KINDS`; the config must have its fields, and no
    others. Every value must be what limits.py allows the field, or any of
    its kind where an algorithm or a sampler owns the field (learner/field_limits.py).
    Options hold `config` (as given), `workdir` (default `runs/<file's stem>`),
    `dry_run`, the further flags, and `overrides`: (field, text) of each that was set.
    `--help` prints the description, which says what the further flags mean, every
    flag's default and the exit codes, and exits 0.
    Raises InputError for whatever is wrong with the line or the file.
    """
    defaults = {**_FLAGS, **(flags or {})}
    if any(argument in ("--help", "-h") for argument in argv):
        # print gives None, which is exit code 0.
        raise SystemExit(print(_usage(description, defaults, short or {})))
    texts_of, overrides = _split(argv, defaults, short or {})
    values = {
        name: texts
        if default == ()
        else parse_value.parse(texts[-1], f"--{name}", default)  # of several the last
        for name, texts in texts_of.items()
        for default in [defaults[name]]
    }
    pairs = [(field, text) for field, text, _ in overrides]
    options = types.SimpleNamespace(**(defaults | values), overrides=pairs)
    run = getattr(options, run_flag) if run_config else ""
    of_runs = run_config is not None and run_flag == "workdir"
    if (options.config and run) or (of_runs and not options.config and not run):
        raise InputError(f"give one of --config=path/to/file.py and --{run_flag}=RUN")
    if not options.config and not run:
        raise InputError("--config is missing; give --config=path/to/file.py")
    config = (
        config_file.load(options.config, kind) if options.config else run_config(run)
    )
    for field, text, flag in overrides:
        _override(config, field=field, text=text, flag=flag, limited=bool(kind))
    if options.config and not of_runs and not options.workdir:
        options.workdir = str(pathlib.Path("runs", stem(options.config)))
    return config.lock(), options


def switches(argument: str, **defaults: bool | int | float | str) -> Mapping[str, Any]:
    """The values of an argument `kl=0,critic=no` of get_config, over its defaults.

    Each has the type of its default.

    Raises:
      InputError: a name is unknown or there twice, or a value is of a wrong type.
    """
    values = {}
    for part in argument.split(",") if argument else ():
        name, _, text = part.partition("=")
        default = choose(defaults, name, "argument")
        if name in values:
            raise InputError(f"argument {name} is there twice; give it once")
        values[name] = parse_value.parse(text, name, default)
    return defaults | values


class _Help(argparse.RawDescriptionHelpFormatter):
    """Texts as they are written, and each flag's default behind its meaning."""

    def _get_help_string(self, action):
        text = action.help or ""
        # None, an empty list and False of a switch: the text says what they mean.
        if action.default in (None, False, "", [], argparse.SUPPRESS):
            return text
        return text if "default" in text else f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """For launchers without --config: what is wrong with the line is an InputError.

    --help ends with the exit codes.
    """

    def __init__(self, prog: str, description: str | None = None, **options):
        options = {"formatter_class": _Help, "allow_abbrev": False} | options
        options = {"epilog": exit_codes()} | options
        typed = platform.as_launched(f"python {prog}")
        super().__init__(
            prog=prog if typed == f"python {prog}" else typed,
            description=description and platform.as_launched(description),
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """Raises InputError where argparse would print the usage and exit."""
        raise InputError(f"{message}; {self.prog} --help says more")


def run_main(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run `main(argv)` and exit: 2 after an InputError's one line, 130 after ^C.

    What JAX cannot make of the environment is such a line, too, and so is what the
    system refuses. After such a line the process ends within `_LEAVE` seconds, if it is
    a program's own: threads of Orbax would wait 300 for a save that has failed.
    """
    own = sys._getframe(1).f_globals.get("__name__") == "__main__"
    if own:
        # Python itself writes a message as it is, whatever a policy put into it.
        sys.excepthook = console.traceback_hook
    # First of all: once JAX has its devices, it does not look at the environment.
    platform.spare_libtpu()
    for line in platform.set_aside():
        print(console.shown(line), file=sys.stderr)
    with console.guarded(), _interrupts_heard():
        try:
            platform.check_compiler_flags()
            code = main(sys.argv[1:])
        except KeyboardInterrupt:
            console.error("interrupted")
            code = 130  # 128 + SIGINT, as shells have it
        except Exception as error:
            line = line_of(error)
            if line is None:
                raise  # a fault of ours: its traceback is wanted
            console.error(console.shown(line))
            code = 2
    if own and code == 2:
        # As a daemon it goes on while the interpreter waits for the other threads.
        late = threading.Timer(_LEAVE, _end, (code,))
        late.daemon = True
        late.start()
    sys.exit(code)


def line_of(error: Exception) -> str | None:
    """The one line for what a program has raised; None where it is a fault of ours."""
    if not isinstance(error, InputError):
        line = platform.complaint(error) or platform.refusal(error)
        if line is None:
            return None
        error = InputError(line)
    return one_line(error)


def _end(code: int) -> None:
    """End the process, whoever still runs in it."""
    with contextlib.suppress(OSError, ValueError):  # a reader that left, or closed
        sys.stdout.flush()
    os._exit(code)


@contextlib.contextmanager
def _interrupts_heard() -> Iterator[None]:
    """While it lasts, ^C is not lost where Python cannot raise it, but comes anew.

    That is in `__del__`, or in what JAX has the garbage collector call.
    """
    before = sys.unraisablehook

    def hook(unraisable):
        if unraisable.exc_type is not KeyboardInterrupt:
            return before(unraisable)
        # By then the callback that swallowed it has returned, and Python can raise it.
        again = threading.Timer(0.05, _thread.interrupt_main)
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def reading(config: ConfigDict) -> tuple["Reading", Callable[[], list[str]]]:
    """A read-only view of the config, and which fields nothing has read through it.

    Attributes, items and `**view` read; `to_dict` (for logs and run.json) does not.
    """
    read: set[str] = set()
    names = [name for name, _ in leaves(config.to_dict())]
    return Reading(config, read), lambda: [name for name in names if name not in read]


class Reading(Mapping):
    """A view of a ConfigDict that notes the dotted name of every leaf it hands out."""

    def __init__(self, config: ConfigDict, read: set[str], prefix: str = ""):
        self._config, self._read, self._prefix = config, read, prefix

    def __getitem__(self, key: str) -> Any:
        value = self._config[key]
        if isinstance(value, ConfigDict):
            return Reading(value, self._read, f"{self._prefix}{key}.")
        self._read.add(self._prefix + key)
        return value

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__") or key not in self._config:
            raise AttributeError(f"no field {self._prefix}{key}")
        return self[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)

    def to_dict(self) -> dict[str, Any]:
        """The section as a dict; its fields do not count as read."""
        return self._config.to_dict()


def _split(argv, defaults, short) -> tuple[dict[str, tuple], list[tuple]]:
    """Each flag's texts, and (field, text, flag) overrides, in the order given."""
    texts_of: dict[str, tuple[str, ...]] = {}
    overrides = []
    left = list(argv)
    for argument in left:
        # What is not UTF-8 comes into sys.argv as lone surrogates.
        if any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise InputError(f"argument {argument!r} is not UTF-8; give it as such")
    while left:
        argument = left.pop(0)
        if not argument.startswith("--"):
            raise InputError(
                f"unexpected argument {argument!r}; flags are --name=value"
            )
        name, equals, text = argument[2:].partition("=")
        field = short.get(name)
        if name.startswith("config."):
            field = name.removeprefix("config.")
        if field is None and name not in defaults:
            flags = [*defaults, *short]
            near = difflib.get_close_matches(name, flags, 1)
            remedy = f"did you mean --{near[0]}?" if near else f"or --config.{name}?"
            known = ", ".join(f"--{flag}" for flag in flags)
            raise InputError(f"unknown flag --{name}; {remedy} Flags: {known}")
        if not equals:
            # --dry_run alone is true: the word behind it is not its value.
            if field is None and isinstance(defaults[name], bool):
                text = "true"
            elif left and not left[0].startswith("--"):
                text = left.pop(0)  # "-3" is a value, "--seed" the next flag
            else:
                raise InputError(f"--{name} has no value; give --{name}=value")
        if field is None:
            texts_of[name] = (*texts_of.get(name, ()), text)
        else:
            overrides.append((field, text, f"--{name}"))
    return texts_of, overrides


def _override(config: ConfigDict, field: str, text: str, flag: str, limited: bool):
    """Set one dotted field from the text that a flag gave; `limited`: by limits.py."""
    *path, leaf = field.split(".")
    section = config
    for part in path:
        section = section.get(part) if isinstance(section, ConfigDict) else None
    there = isinstance(section, ConfigDict) and leaf in section
    if not there or isinstance(section[leaf], ConfigDict):
        raise InputError(f"{flag}={text}: {config_file.unknown(config, field)}")
    # By get_type, since a placeholder has a type but no value.
    value = parse_value.parse(
        text, flag, default=section[leaf], kind=section.get_type(leaf)
    )
    if limited:
        limits.check_value(limits.row(field, section[leaf]), value, flag)
    section[leaf] = value


def stem(config: str) -> str:
    """A folder's name for a config: v4_32 of configs/v4_32.py, v4_32-kl=0 of …:kl=0."""
    file, _, argument = config.partition(".py:")
    name = pathlib.PurePath(file).stem
    return name + ("-" + re.sub(r"[^\w.,=+-]", "_", argument) if argument else "")


def _usage(description: str, defaults: Mapping[str, Any], short: Mapping) -> str:
    shown = {
        # -1 of a number that is 0 or more: none is given.
        name: "none" if value in ("", (), -1) else f"{value!r}"
        for name, value in defaults.items()
    }
    longest = max(len(name) for name in [*defaults, *short])
    flags = [
        f"  --{name:<{longest}}  {_MEANINGS.get(name, 'see above')} (default: {text})"
        for name, text in shown.items()
    ]
    flags += [
        f"  --{name:<{longest}}  the same as --config.{field}"
        for name, field in short.items()
    ]
    fields = "  --config.FIELD=VALUE overrides a field; configs/base.py lists them all."
    parts = [platform.as_launched(description.strip())]
    parts += ["\n".join(["flags:", *flags, fields]), exit_codes()]
    return "\n\n".join(parts)
