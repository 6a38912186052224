"""Rows of a data set of this package, prepared by TFDS at the first use."""

import contextlib
import difflib
import fcntl
import importlib
import io
import json
import pathlib
import pkgutil
from collections.abc import Iterator

import numpy as np

from limr_jax.data.datasets import catalogue
from limr_jax.errors import InputError, shown

PACKAGE = "limr_jax.data.datasets"


def names() -> list[str]:
    """The names of all data sets: the packages in data/datasets."""
    path = importlib.import_module(PACKAGE).__path__
    return [module.name for module in pkgutil.iter_modules(path) if module.ispkg]


def at_hand(spec: str, data_dir, manual_dir=None) -> bool:
    """Whether a public set can be read without a download."""
    name, _, split = spec.partition(":")
    data_dir = pathlib.Path(data_dir).expanduser()
    manual_dir = pathlib.Path(manual_dir or data_dir / "manual").expanduser()
    if any(data_dir.glob(f"{name}/*/dataset_info.json")):
        return True
    return catalogue.local_file(manual_dir, name, split) is not None


def local_files(spec: str, data_dir, manual_dir=None) -> list[pathlib.Path]:
    """The files of the local copies of a public set's source; of a split, or of all."""
    name, _, split = spec.partition(":")
    manual_dir = manual_dir or pathlib.Path(data_dir) / "manual"
    manual_dir = pathlib.Path(manual_dir).expanduser()
    # The embedded sets are not in the catalogue, and have no source.
    known = catalogue.FACTS[name].splits if name in catalogue.FACTS else ()
    splits = [split] if split else known
    copies = (catalogue.local_file(manual_dir, name, each) for each in splits)
    return [
        file
        for copy in filter(None, copies)
        for file in ([copy] if copy.is_file() else copy.rglob("*"))
    ]


def read(spec: str, data_dir, manual_dir=None) -> list[tuple[str, dict]]:
    """All rows of 'name:split', as (place, row), in the set's fixed order.

    A name alone is a set of one split.
    data_dir: where prepared sets are kept; manual_dir: where local source files lie,
    `data_dir`/manual if None. InputError: no such set or split; it cannot be prepared
    or read; it was prepared from a local file that has changed since.
    """
    name, _, split = spec.partition(":")
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0)
        raise InputError(
            f"{spec}: no data set is called {name!r}, the nearest is {near[0]!r}; "
            f"give one of {', '.join(names())}, or a .jsonl file"
        )
    data_dir = pathlib.Path(data_dir).expanduser()
    manual_dir = pathlib.Path(manual_dir or data_dir / "manual").expanduser()
    builder = prepare(name, data_dir, manual_dir, split=split)
    # A set with a config was made for this split, and has no other.
    if len(builder.info.splits) == 1 and (not split or builder.builder_config):
        (split,) = builder.info.splits
    if split not in builder.info.splits:
        raise InputError(
            f"{spec}: {name} has no split {split!r}; give one of "
            + ", ".join(f"{name}:{each}" for each in _splits(name, builder))
        )
    with _unreadable(builder.data_dir):
        source = builder.as_data_source(split)
        examples = source.__getitems__(list(range(len(source))))
        return [(f"{spec}[{i}]", _plain(row)) for i, row in enumerate(examples)]


def _splits(name: str, builder) -> list[str]:
    """What may stand behind `name:`, those that are made to order at the end."""
    return [*builder.info.splits, *getattr(_module(name), "MADE_TO_ORDER", ())]


def _module(name: str):
    return importlib.import_module(f"{PACKAGE}.{name}.{name}_dataset_builder")


@contextlib.contextmanager
def _unreadable(folder) -> Iterator[None]:
    """Whatever TFDS and its libraries raise is an InputError: they share no base."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{folder}: the prepared set cannot be read ({shown(error, limit=200)}); "
            "remove that folder and it is made again"
        ) from None


def prepare(name: str, data_dir: pathlib.Path, manual_dir: pathlib.Path, *, split=""):
    """The TFDS builder, its files in place. One process prepares, others wait.

    split: where a set makes splits to order, as arithmetic does, it is prepared for
    this one in a folder of its own; of another set all splits are. What is prepared is
    only read: its folder may be one that nobody may write to.
    """
    import tensorflow_datasets as tfds  # 0.3 s that a JSONL user need not wait

    module = _module(name)
    made_to_order = getattr(module, "config_of", lambda _: None)(split)

    def builder():
        # TFDS prints what it does, and a program's last line on stdout is its result.
        # array_record gives any row by its index, as `as_data_source` asks.
        with _unreadable(data_dir / name), contextlib.redirect_stdout(io.StringIO()):
            return module.Builder(
                data_dir=data_dir, config=made_to_order, file_format="array_record"
            )

    if not _is_whole(prepared := builder()):
        config = tfds.download.DownloadConfig(
            manual_dir=str(manual_dir), try_download_gcs=False
        )
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            with (data_dir / f".{name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                tfds.disable_progress_bar()
                # Anew: another process may have prepared it while this one waited for
                # the lock.
                prepared = builder()
                with contextlib.redirect_stdout(io.StringIO()):
                    prepared.download_and_prepare(
                        file_format="array_record", download_config=config
                    )
        except OSError as error:
            raise InputError(
                f"{data_dir}: {name} cannot be prepared there ({error}); give a folder "
                "that can be written"
            ) from None
    with _unreadable(prepared.data_dir):
        if not _is_whole(prepared):
            # `_unreadable` makes a line of it, with the remedy.
            raise ValueError("dataset_info.json is missing")
        # The embedded sets have no source but this package.
        changed = getattr(prepared, "changed_source", lambda _: None)(manual_dir)
    if changed:
        raise InputError(
            f"{changed} is not what {prepared.data_dir} was prepared from; remove that "
            "folder and it is made again"
        )
    return prepared


def _is_whole(builder) -> bool:
    """TFDS writes a set elsewhere and renames it: with this file it is complete."""
    return (pathlib.Path(builder.data_dir) / "dataset_info.json").is_file()


def _plain(row: dict) -> dict:
    """TFDS's bytes and numpy scalars as Python's; `columns` is a JSON object of more.

    The public sets keep there what their sources have beside problem and answer.
    """
    plain = {
        name: value.decode() if isinstance(value, bytes) else np.asarray(value).tolist()
        for name, value in row.items()
    }
    # The set's own fields win: no column of a source may hide an id or an answer.
    return json.loads(plain.pop("columns", "{}")) | plain
