"""Rows of a data set of this package, prepared by TFDS at the first use."""

import contextlib
import difflib
import fcntl
import importlib
import io
import json
import pathlib
import pkgutil

import numpy as np

from limr_jax.datasets import facts
from limr_jax.errors import InputError

PACKAGE = "limr_jax.datasets"


def names() -> list[str]:
    """The data sets that there are: the packages in this one."""
    path = importlib.import_module(PACKAGE).__path__
    return [module.name for module in pkgutil.iter_modules(path) if module.ispkg]


def at_hand(spec: str, data_dir, manual_dir=None) -> bool:
    """Whether a public set can be read without a download."""
    name, _, split = spec.partition(":")
    data_dir = pathlib.Path(data_dir).expanduser()
    manual_dir = pathlib.Path(manual_dir or data_dir / "manual").expanduser()
    if any(data_dir.glob(f"{name}/*/dataset_info.json")):
        return True
    return facts.local_file(manual_dir, name, split) is not None


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
    builder = prepare(name, data_dir, manual_dir)
    if not split and len(builder.info.splits) == 1:
        (split,) = builder.info.splits
    if split not in builder.info.splits:
        raise InputError(
            f"{spec}: {name} has no split {split!r}; give one of "
            + ", ".join(f"{name}:{each}" for each in builder.info.splits)
        )
    try:
        source = builder.as_data_source(split)
        examples = source.__getitems__(list(range(len(source))))
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{builder.data_dir}: the prepared set cannot be read ({error}); remove "
            "that folder and it is made again"
        ) from None
    return [(f"{spec}[{i}]", _plain(row)) for i, row in enumerate(examples)]


def prepare(name: str, data_dir: pathlib.Path, manual_dir: pathlib.Path):
    """The TFDS builder, its files in place. One process prepares, others wait."""
    import tensorflow_datasets as tfds  # 0.3 s that a JSONL user need not wait

    module = importlib.import_module(f"{PACKAGE}.{name}.{name}_dataset_builder")
    config = tfds.download.DownloadConfig(
        manual_dir=str(manual_dir), try_download_gcs=False
    )
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with (data_dir / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            tfds.disable_progress_bar()
            with contextlib.redirect_stdout(io.StringIO()):
                builder = module.Builder(data_dir=data_dir, file_format="array_record")
                builder.download_and_prepare(
                    file_format="array_record", download_config=config
                )
    except OSError as error:
        raise InputError(
            f"{data_dir}: {name} cannot be prepared there ({error}); give a folder "
            "that can be written"
        ) from None
    if changed := getattr(builder, "changed_source", lambda _: None)(manual_dir):
        raise InputError(
            f"{changed} is not what {builder.data_dir} was prepared from; remove that "
            "folder and it is made again"
        )
    return builder


def _plain(row: dict) -> dict:
    """TFDS's bytes and numpy scalars as Python's; `columns` is a JSON object of more.

    The public sets keep there what their sources have beside problem and answer.
    """
    plain = {
        name: value.decode() if isinstance(value, bytes) else np.asarray(value).tolist()
        for name, value in row.items()
    }
    return json.loads(plain.pop("columns", "{}")) | plain
