"""Command line → one locked configuration, checked before anything is expensive.

A config file is Python: `get_config() -> ConfigDict` with every field of base.py,
or `get_config(arg)` for `--config=file.py:arg`. `--config.a.b=value` overrides one
field and is read by the type of the field's default. absl's flags are not used:
ml_collections prints a traceback for a misspelt field, and absl's flags are global.
"""

import argparse
import copy
import difflib
import hashlib
import importlib.util
import inspect
import json
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from ml_collections import ConfigDict

from limr_jax import chips, typed
from limr_jax.errors import InputError, choose

_FLAGS = {"config": "", "workdir": "", "dry_run": False}
# What configs there are: the file that has every field, and who takes them.
KINDS = {"base": "launch/tpu.py", "sft_base": "launch/sft.py"}


def load(
    argv: Sequence[str],
    description: str = "",
    *,
    flags: Mapping[str, bool | int | float | str] | None = None,
    short: Mapping[str, str] | None = None,
    run_config: Callable[[str], ConfigDict] | None = None,
    kind: str = "",
) -> tuple[ConfigDict, types.SimpleNamespace]:
    """The locked config and the options of a command line.

    argv: the arguments, without the program's name (`sys.argv[1:]`).
    flags: further flags, name → default; the default's type is the flag's type. One
    whose default is () may be given again and again: all its texts, in their order.
    short: flag → field; `--flag=x` stands for `--config.field=x`.
    run_config: workdir → its run's config, for a program that looks at runs: one of
    --config and --workdir is given, not both, and no workdir is the default.
    kind: a name in `KINDS`; the config must have every field of that one.
    Options hold `config` (as given), `workdir` (default `runs/<file's stem>`),
    `dry_run`, the further flags, and `overrides`: (field, text) of each that was set.
    `--help` prints the usage and exits 0.
    Raises InputError for whatever is wrong with the line or the file.
    """
    defaults = {**_FLAGS, **(flags or {})}
    if any(argument in ("--help", "-h") for argument in argv):
        raise SystemExit(print(_usage(description, defaults)))
    given, overrides = _split(argv, defaults, short or {})
    values = {
        name: texts if default == () else typed.parse(texts[-1], f"--{name}", default)
        for name, texts in given.items()
        for default in [defaults[name]]
    }
    options = types.SimpleNamespace(**(defaults | values), overrides=overrides)
    if run_config and bool(options.config) == bool(options.workdir):
        raise InputError("give one of --config=path/to/file.py and --workdir=RUN")
    if not options.config and not run_config:
        raise InputError("--config is missing; give --config=path/to/file.py")
    if options.config:
        config = _run_config_file(options.config)
        if kind:
            _check_kind(config, options.config, kind)
    else:
        config = run_config(options.workdir)
    for field, text in overrides:
        _override(config, field, text)
    if not run_config and not options.workdir:
        options.workdir = str(pathlib.Path("runs", stem(options.config)))
    return config.lock(), options


def switches(argument: str, **defaults: bool | int | float | str) -> Mapping[str, Any]:
    """What get_config was given as `kl=0,critic=no`, typed by the defaults; else those.

    Raises InputError for a name that is unknown or there twice, or a value of a
    wrong type.
    """
    found = {}
    for part in argument.split(",") if argument else ():
        name, _, text = part.partition("=")
        default = choose(defaults, name, "argument")
        if name in found:
            raise InputError(f"argument {name} is there twice; give it once")
        found[name] = typed.parse(text, name, default)
    return defaults | found


class Parser(argparse.ArgumentParser):
    """For launchers without --config: what is wrong with the line is an InputError."""

    def __init__(self, prog: str, description: str | None = None, **options):
        raw = argparse.RawDescriptionHelpFormatter
        options = {"formatter_class": raw, "allow_abbrev": False} | options
        super().__init__(prog=prog, description=description, **options)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; {self.prog} --help says more")


def run_main(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run `main(argv)` and exit: 2 after an InputError's one line, 130 after ^C."""
    chips.spare_libtpu()
    try:
        code = main(sys.argv[1:])
    except InputError as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config (or any nested mapping) as JSON has it: dicts, lists, scalars."""
    nested = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return json.loads(json.dumps(nested))


def config_digest(config: Mapping[str, Any]) -> str:
    """sha256 of the config's values, in hex; the order of fields does not matter."""
    text = json.dumps(plain(config), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Every leaf in which two nested mappings differ, as `a.b: old → new`, sorted."""
    old_leaves, new_leaves = dict(leaves(plain(old))), dict(leaves(plain(new)))

    def shown(leaves, name):
        return json.dumps(leaves[name]) if name in leaves else "absent"

    return [
        f"{name}: {shown(old_leaves, name)} → {shown(new_leaves, name)}"
        for name in sorted(old_leaves.keys() | new_leaves.keys())
        # As text, since 1 == True == 1.0 and a missing field is not a null one.
        if shown(old_leaves, name) != shown(new_leaves, name)
    ]


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
        return self._config.to_dict()


def _split(argv, defaults, short) -> tuple[dict[str, tuple], list[tuple[str, str]]]:
    """Each flag's texts, and (field, text) overrides, in the order given."""
    given: dict[str, tuple[str, ...]] = {}
    overrides = []
    left = list(argv)
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
            if field is None and isinstance(defaults[name], bool):
                text = "true"
            elif left and not left[0].startswith("--"):
                text = left.pop(0)
            else:
                raise InputError(f"--{name} has no value; give --{name}=value")
        if field is None:
            given[name] = (*given.get(name, ()), text)
        else:
            overrides.append((field, text))
    return given, overrides


def _override(config: ConfigDict, field: str, text: str) -> None:
    """Set one dotted field from its text."""
    flag = f"--config.{field}={text}"
    *path, leaf = field.split(".")
    section = config
    for part in path:
        section = section.get(part)
        if not isinstance(section, ConfigDict):
            break
    if not isinstance(section, ConfigDict) or leaf not in section:
        raise InputError(f"{flag}: no field {field!r}; {_nearest(config, field)}")
    default = section[leaf]
    if isinstance(default, ConfigDict):
        fields = ", ".join(f"--config.{field}.{name}" for name in default)
        raise InputError(f"{flag}: {field} is a section; set one of {fields}")
    section[leaf] = typed.parse(
        text, f"--config.{field}", default, section.get_type(leaf)
    )


def _nearest(config: ConfigDict, field: str) -> str:
    """Which field a misspelt one may have meant: by its last part, else by letters."""
    names = [name for name, _ in leaves(config.to_dict())]
    leaf = field.split(".")[-1]
    ends = {name: name.split(".")[-1] for name in names}
    near = [name for name in names if ends[name] == leaf]
    near = near or difflib.get_close_matches(field, names, 1)
    if not near:
        close = difflib.get_close_matches(leaf, ends.values(), 1, 0.7)
        near = [name for name in names if ends[name] in close]
    if near:
        return f"the nearest is {' or '.join(near)}"
    return f"the fields are {', '.join(names)}"


def _run_config_file(spec: str) -> ConfigDict:
    """get_config() of the file, or get_config(arg) for `file.py:arg`."""
    file, suffix, argument = spec.partition(".py:")
    path = pathlib.Path(file + ".py" if suffix else spec)
    if not path.is_file():
        raise InputError(f"--config={spec}: no file {path}; give a Python config file")
    try:
        with _ImportPaths(path.resolve()):
            module = _import(path.resolve())
            get_config = getattr(module, "get_config", None)
            if not callable(get_config):
                raise InputError("it has no function get_config(); see configs/base.py")
            try:
                inspect.signature(get_config).bind(*([argument] if suffix else []))
            except TypeError:
                takes = "no argument" if suffix else f"an argument: --config={path}:ARG"
                raise InputError(f"its get_config takes {takes}") from None
            config = get_config(argument) if suffix else get_config()
    except InputError as error:
        raise InputError(f"--config={spec}: {_one_line(error)}") from error
    except Exception as error:
        where = _line_of(error, path.resolve())
        raise InputError(
            f"--config={spec}: {where}{type(error).__name__}: {_one_line(error)}"
        ) from error
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise InputError(f"--config={spec}: get_config returned {kind}, not ConfigDict")
    # A file may hand out one object at every call.
    return copy.deepcopy(config)


def _check_kind(config: ConfigDict, spec: str, kind: str) -> None:
    """InputError, with the first field that it lacks, unless it is of the kind."""

    def lacking(kind):
        file = pathlib.Path(__file__).parents[1] / f"configs/{kind}.py"
        fields = leaves(_run_config_file(str(file)).to_dict())
        own = dict(leaves(config.to_dict()))
        return next((name for name, _ in fields if name not in own), None)

    if missing := lacking(kind):
        other = next((x for x in KINDS if x != kind and not lacking(x)), None)
        remedy = f"add it, as configs/{kind}.py has it"
        if other:
            remedy = f"it is a config of configs/{other}.py, for {KINDS[other]}"
        raise InputError(f"--config={spec} has no field {missing}; {remedy}")


def _import(path: pathlib.Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("limr_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _ImportPaths:
    """While a config file runs, `from configs import base` finds its own repository.

    That is the folder above the file's; then this package's checkout, for a user's
    own config file elsewhere. Modules named configs are forgotten afterwards, and no
    byte code is kept: its time stamp would hide an edit made within one second.
    """

    def __init__(self, path: pathlib.Path):
        checkout = pathlib.Path(__file__).resolve().parents[1]
        self._paths = [str(path.parents[1]), str(checkout)]

    def __enter__(self):
        self._sys = sys.path[:], sys.dont_write_bytecode
        self._modules = self._take_modules()
        sys.path[:0] = self._paths
        sys.dont_write_bytecode = True

    def __exit__(self, *_):
        sys.path[:], sys.dont_write_bytecode = self._sys
        self._take_modules()
        sys.modules.update(self._modules)

    @staticmethod
    def _take_modules() -> dict[str, types.ModuleType]:
        names = [name for name in sys.modules if name.split(".")[0] == "configs"]
        return {name: sys.modules.pop(name) for name in names}


def _line_of(error: BaseException, path: pathlib.Path) -> str:
    """`line 3: `, where the file itself raised; else nothing."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.lineno:
        return f"line {error.lineno}: "
    return f"line {lines[-1]}: " if lines else ""


def leaves(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf; an empty section is a leaf."""
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + str(name), value


def stem(config: str) -> str:
    """`v4_32` of configs/v4_32.py, `v4_32-kl=0` of configs/v4_32.py:kl=0."""
    file, _, argument = config.partition(".py:")
    name = pathlib.PurePath(file).stem
    return name + ("-" + re.sub(r"[^\w.,=+-]", "_", argument) if argument else "")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _usage(description: str, defaults: Mapping[str, Any]) -> str:
    flags = "\n".join(
        f"  --{name} (default {value!r})" for name, value in defaults.items()
    )
    fields = "--config.FIELD=VALUE overrides a field; configs/base.py lists them all."
    return f"{description.strip()}\n\n{flags}\n  {fields}"
