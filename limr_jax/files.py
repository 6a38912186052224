"""Files that a command writes: where they may lie, and whole or not at all."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from limr_jax import bucket
from limr_jax.errors import InputError


@contextlib.contextmanager
def replacing(path) -> Iterator[Any]:
    """Yields a path beside this one; it takes its place when the block has ended well.

    So a reader, or a kill, finds the old file or the new one. path: pathlib's, or
    epath's for gs://, where an object is seen when it is whole, so that it is yielded
    itself. InputError: the disk is full, say.
    """
    name = f".{path.stem}.{os.getpid()}.tmp{path.suffix}"
    temporary = path if bucket.remote(path) else path.with_name(name)
    try:
        yield temporary
        if temporary != path:
            temporary.replace(path)
    except bucket.failures() as error:
        cause = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path}: cannot be written ({cause}); check path, rights and room"
        ) from error
    finally:
        if temporary != path:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_text(path, text: str) -> None:
    """The file, whole or not at all.

    A lone surrogate, which UTF-8 cannot hold, becomes JSON's own escape of it.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def write_rows(path, rows: Iterable[Mapping]) -> None:
    """One JSON object a line; the file is there whole or not at all."""
    with (
        replacing(pathlib.Path(path)) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def local(path, flag: str) -> pathlib.Path:
    """The path that a flag gave; InputError where it is not on this machine."""
    if bucket.remote(path):
        raise InputError(f"{flag}={path} is not on this machine; give a local path")
    return pathlib.Path(path)


def output(path, *read, flag: str = "--out") -> pathlib.Path:
    """The file that a flag names, to be written; before anything is done for it.

    read: files that are read meanwhile; None where one is not given. InputError: it is
    one of these, it is a folder, or there is none that it could lie in.
    """
    out = local(path, flag)
    if any(each and pathlib.Path(each).resolve() == out.resolve() for each in read):
        raise InputError(f"{flag} {path} is what is read; give another file")
    if out.is_dir():
        raise InputError(f"{flag} {path} is a folder; give a file in it")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{flag} {path}: no such folder; make it first")
    return out
