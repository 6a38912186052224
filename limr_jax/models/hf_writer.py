"""Tensors → the safetensors files of a checkpoint directory, one tensor in memory."""

import contextlib
import json
import math
import pathlib
from collections.abc import Iterable
from typing import Protocol

import jax.numpy as jnp
import numpy as np

# safetensors' name of a dtype → NumPy's.
DTYPES = {"F32": jnp.float32, "BF16": jnp.bfloat16, "F16": jnp.float16}


class Entry(Protocol):
    """A tensor to write: its name and shape in the file, its dtype, its values."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str:
        """safetensors' name of it, a key of `DTYPES`."""
        ...

    def array(self) -> np.ndarray:
        """The values, of `shape` and `dtype`, computed when they are written."""
        ...


def write_tensors(
    folder: pathlib.Path,
    entries: Iterable[Entry],
    *,
    max_file_bytes: int = 5 * 10**9,
    writes: bool = True,
    stem: str = "model",
) -> None:
    """Write model.safetensors, or parts of it and an index beyond `max_file_bytes`.

    stem: the name, in the place of "model".
    writes: whether this process does; the others only take part in `Entry.array`.
    """
    files = _in_files(list(entries), max_file_bytes, stem)
    for name, part in files.items():
        _write_file(folder / name, part, writes)
    if writes and len(files) > 1:
        _write_index(folder / f"{stem}.safetensors.index.json", files)


def write_json(path: pathlib.Path, value) -> None:
    """Write a value as an indented JSON file."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _bytes(entry: Entry) -> int:
    return math.prod(entry.shape) * np.dtype(DTYPES[entry.dtype]).itemsize


def _in_files(
    entries: list[Entry], max_bytes: int, stem: str
) -> dict[str, list[Entry]]:
    """File name → its tensors, as many as fit."""
    parts, filled = [[]], 0
    for entry in entries:
        # A tensor that is larger than a file may be has one to itself.
        if parts[-1] and filled + _bytes(entry) > max_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(entry)
        filled += _bytes(entry)
    if len(parts) == 1:
        return {f"{stem}.safetensors": parts[0]}
    total = len(parts)
    return {
        f"{stem}-{i:05d}-of-{total:05d}.safetensors": part
        for i, part in enumerate(parts, start=1)
    }


def _write_file(path: pathlib.Path, entries: list[Entry], writes: bool) -> None:
    """One safetensors file: the header's length, the header, the bytes in order.

    By hand, because the library wants all of a file's tensors in memory at once.
    """
    # transformers 4 refuses a file that does not name its format.
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + _bytes(entry)],
        }
        offset += _bytes(entry)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the data starts at a multiple of 8
    with open(path, "wb") if writes else contextlib.nullcontext() as file:
        if writes:
            file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            # Whether or not it writes: an array of several processes is gathered here.
            array = entry.array()
            if writes:
                file.write(array.reshape(-1).view(np.uint8))


def _write_index(path: pathlib.Path, files: dict[str, list[Entry]]) -> None:
    parts = [(entry, name) for name, part in files.items() for entry in part]
    write_json(
        path,
        {
            "metadata": {"total_size": sum(_bytes(entry) for entry, _ in parts)},
            "weight_map": {entry.name: name for entry, name in parts},
        },
    )
