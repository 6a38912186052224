"""A config file: Python whose `get_config` makes a ConfigDict; one line for its faults.

What the file gives must be one of `KINDS`: the fields of configs/base.py, or of
configs/sft_base.py, each of its type, and no others.

Beside `get_config` it may have `REMEDIES`, field → how to come by the file or folder
that the field names there: what an earlier command makes, or a user must fetch.
"""

import copy
import difflib
import functools
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from limr_jax import platform
from limr_jax.config import limits
from limr_jax.errors import InputError, one_line

# What configs there are: the file that has every field, and who takes them.
KINDS = {"base": "launch/tpu.py", "sft_base": "launch/sft.py"}
_LISTED = 20  # fields, at most, that an error names
# Fields of older versions by their names today, where letters alone would not tell.
_RENAMED = {
    "rollout.shrinks": "rollout.compactions",
    "sampler.dynamic.max_rounds": "filter.max_rounds",
    "sampler.dynamic.max_age": "filter.max_age",
}


def load(spec: str, kind: str = "") -> ConfigDict:
    """The config of a file: of its get_config(), or get_config(arg) for `file.py:arg`.

    kind: a name in `KINDS`; the config then has that one's fields, in its order. "":
    its fields may be any. Raises InputError, in one line, for whatever is wrong.
    """
    config, _ = _call(spec)
    if kind:
        return _of_kind(config, spec, kind)
    if isinstance(config, FrozenConfigDict):
        return ConfigDict(config)
    return copy.deepcopy(config)  # a file may hand out one object at every call


def refuse_absent(
    config: ConfigDict, spec: str, *, fields: Sequence[str] | None = None
) -> None:
    """Refuse a config whose file says how to come by what is not there.

    config: of the file `spec`, overrides included. fields: those that are looked at;
    None: all that the file has a remedy for.

    Raises:
      InputError: what a field names is absent; with the remedy. Or the file's REMEDIES
        are none.
    """
    file_config, remedies = _call(spec)
    values, own = (dict(leaves(x.to_dict())) for x in (config, file_config))
    for field, remedy in remedies.items():
        if field not in own:
            raise InputError(f"--config={spec}: REMEDIES: {unknown(config, field)}")
        # A value from the command line is the user's: the remedy makes another file.
        if values[field] != own[field] or (fields is not None and field not in fields):
            continue
        if not _is_there(field, values[field]):
            raise InputError(
                f"--config={spec}: {field}={values[field]} is not there; "
                f"{platform.as_launched(remedy)}"
            )


def _is_there(field: str, value: str) -> bool:
    """Whether there is such a file or folder, or one without the slice behind it."""
    # Problems are read from the current folder; a checkpoint or a tokenizer may lie
    # where the package does.
    find = pathlib.Path if field.startswith("data.") else platform.resolve
    names = (value, re.sub(r"\[[^\[\]]*\]$", "", value))
    return any(os.path.exists(find(name)) for name in names)


def leaves(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of every leaf; an empty section is a leaf."""
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + str(name), value


def todays_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a config that an older version kept, by the names of today.

    stored: nested, as run.json holds it. Fields that were added since are not in it.
    """
    fields = dict(leaves(stored))
    for old, new in _RENAMED.items():
        if old in fields:
            fields.setdefault(new, fields.pop(old))
    if fields.get("sampler.name") == "dynamic":
        fields |= {"sampler.name": "uniform", "filter.groups": "mixed"}
    return fields


def is_default(field: str, value: Any) -> bool:
    """Whether `value` is the default of a field of launch/tpu.py or launch/sft.py.

    A run that is older than the field did what the field does at its default.
    """
    return any(
        field in _fields(kind) and _fields(kind)[field] == value for kind in KINDS
    )


def unknown(config: ConfigDict, field: str) -> str:
    """The complaint that `field` is no field of the config, with the nearest one."""
    section = config
    for part in field.split("."):
        section = section.get(part) if isinstance(section, ConfigDict) else None
    if isinstance(section, ConfigDict):
        names = ", ".join(f"{field}.{name}" for name in section)
        return f"{field} is a section; set one of {names}"
    return f"no field {field!r}; {_nearest(config, field)}"


def _nearest(config: ConfigDict, field: str) -> str:
    """Which field a misspelt one may have meant: by its last part, else by letters."""
    names = [name for name, _ in leaves(config.to_dict())]
    if _RENAMED.get(field) in names:
        return f"the nearest is {_RENAMED[field]}"
    leaf = field.split(".")[-1]
    ends = {name: name.split(".")[-1] for name in names}
    # "temperature" is the last part of rollout.temperature.
    near = [name for name in names if ends[name] == leaf]
    parent = field.rpartition(".")[0]
    sections = {name.rpartition(".")[0] for name in names} - {"", parent}
    # By letters: of the whole name, a section included; then of the last part alone, as
    # "flor" of sampler.lim.floor.
    near = near or difflib.get_close_matches(field, [*names, *sorted(sections)], 1)
    if not near:
        close = difflib.get_close_matches(leaf, ends.values(), n=1, cutoff=0.7)
        near = [name for name in names if ends[name] in close]
    if near:
        return f"the nearest is {' or '.join(near)}"
    if inside := [name for name in names if name.startswith(f"{parent}.")]:
        return f"{parent} has {', '.join(inside)}"
    if len(names) > _LISTED:
        return "configs/base.py lists all fields"
    return f"the fields are {', '.join(names)}"


def _call(spec: str) -> tuple[ConfigDict, dict[str, str]]:
    """The file's own config and remedies; InputError with the line that raised."""
    file, suffix, argument = spec.partition(".py:")
    path = _shipped(pathlib.Path(file + ".py" if suffix else spec))
    if not path.is_file():
        raise InputError(f"--config={spec}: no file {path}; give a Python config file")
    try:
        with _ImportPaths(path.resolve()):
            module = _import(path.resolve())
            get_config = _get_config(module, path, takes_argument=bool(suffix))
            config = get_config(argument) if suffix else get_config()
            if isinstance(config, ConfigDict):
                # What was left without a value shows now, and a section that is within
                # itself.
                dict(leaves(config.to_dict()))
    except InputError as error:
        raise InputError(f"--config={spec}: {one_line(error)}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit(), too
        message = ": ".join(filter(None, [type(error).__name__, one_line(error)]))
        where = _line_of(error, path.resolve())
        raise InputError(f"--config={spec}: {where}{message}") from error
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise InputError(f"--config={spec}: get_config returned {kind}, not ConfigDict")
    remedies = getattr(module, "REMEDIES", {})
    texts = [*remedies, *remedies.values()] if isinstance(remedies, dict) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"--config={spec}: REMEDIES must be a dict of texts, field → remedy"
        )
    return config, remedies


def _shipped(path: pathlib.Path) -> pathlib.Path:
    """The package's own configs/NAME.py, where the current folder has no such file."""
    own = platform.launch_root() / path
    is_own = path.parts[:1] == ("configs",) and not path.exists() and own.is_file()
    return own if is_own else path


def _get_config(
    module: types.ModuleType, path: pathlib.Path, *, takes_argument: bool
) -> Callable:
    """The file's function of this name; InputError where it cannot be called so."""
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise InputError("it has no function get_config(); see configs/base.py")
    try:
        # Not by calling it: a TypeError of its own would pass for this one.
        inspect.signature(get_config).bind(*([""] if takes_argument else []))
    except TypeError:
        takes = "no argument" if takes_argument else f"an argument: --config={path}:ARG"
        raise InputError(f"its get_config takes {takes}") from None
    return get_config


def _of_kind(config: ConfigDict, spec: str, kind: str) -> ConfigDict:
    """The kind's own config with this one's values; InputError where they differ.

    That is: a field too many, one too few, or a value that the field may not have.
    """
    values, fields = dict(leaves(config.to_dict())), _fields(kind)
    surplus = [name for name in values if name not in fields]
    missing = [name for name in fields if name not in values]
    # A config of the other launcher has all of that one's fields.
    fitting = (x for x in KINDS if _fields(x).keys() <= values.keys())
    if missing and (other := next(fitting, None)):
        raise InputError(
            f"--config={spec} has no field {missing[0]}; it is a config of "
            f"configs/{other}.py, for {KINDS[other]}"
        )
    if surplus:
        raise InputError(f"--config={spec}: {unknown(nested(fields), surplus[0])}")
    if missing:
        raise InputError(
            f"--config={spec} has no field {missing[0]}; add it, as configs/{kind}.py "
            "has it"
        )
    for name, default in fields.items():
        row = limits.row(name, default)
        limits.check_value(row, values[name], f"--config={spec}: {name}")
    # A file may write 1 where 1.0 is meant; the kind's order of fields is kept.
    return nested({name: type(fields[name])(values[name]) for name in fields})


def defaults(kind: str) -> ConfigDict:
    """The config of the kind's own file: every field with its default."""
    return nested(_fields(kind))


@functools.cache
def _fields(kind: str) -> dict[str, Any]:
    """The kind's fields by dotted name, with their defaults."""
    file = platform.launch_root() / f"configs/{kind}.py"
    return dict(leaves(_call(str(file))[0].to_dict()))


def nested(fields: Mapping[str, Any]) -> ConfigDict:
    """The ConfigDict that has these leaves (dotted name → value); undoes `leaves`."""
    sections: dict[str, Any] = {}
    for name, value in fields.items():
        *path, leaf = name.split(".")
        section = sections
        for part in path:
            section = section.setdefault(part, {})
        section[leaf] = value
    return ConfigDict(sections)


def _import(path: pathlib.Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("limr_config", path)
    module = importlib.util.module_from_spec(spec)
    # Not in sys.modules: the next config file is another module of this name.
    spec.loader.exec_module(module)
    return module


class _ImportPaths:
    """While a config file runs, `from configs import base` finds its own repository.

    That is the folder above the file's; then the one that holds this package's own
    configs/, for a user's config file elsewhere. Modules named configs are forgotten
    afterwards, and no byte code is kept: its time stamp would hide an edit made within
    one second.
    """

    def __init__(self, path: pathlib.Path):
        self._paths = [str(path.parents[1]), str(platform.launch_root())]

    def __enter__(self):
        self._sys = sys.path[:], sys.dont_write_bytecode
        # In sys.modules another checkout's `configs` would be found before any path.
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
    # Its own frames alone; the last one is nearest to what was raised.
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    # A file that does not parse never ran, so it has no frame.
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"line {error.lineno}: "
    return f"line {lines[-1]}: " if lines else ""
