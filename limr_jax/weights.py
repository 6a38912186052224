"""Hugging Face safetensors ↔ params, streamed shard by shard."""

import contextlib
import dataclasses
import json
import math
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open

from limr_jax.architectures import describe_config, read_config
from limr_jax.errors import InputError
from limr_jax.model import ModelConfig
from limr_jax.sharding import param_shardings
from limr_jax.tensors import BUFFER, Tensor, by_path, param_shapes, tensors

__all__ = ["check_fits", "load_params", "read_config", "save_params"]

# --- Import -----------------------------------------------------------------------


def load_params(directory, config: ModelConfig, mesh, dtype=jnp.float32):
    """The checkpoint's parameters on `mesh`, in `dtype`, by `param_shardings`.

    Each process reads only the byte ranges of its own devices' shards, one shard at a
    time: beside what the devices hold, the host holds one shard and one tensor of it.

    Raises:
      InputError: not a checkpoint, a truncated file, or a missing, surplus or
        misshapen tensor, named.
    """
    files, shapes = _Files(directory), param_shapes(config)
    expected = files.expected(config)
    shardings = by_path(param_shardings(mesh, shapes))

    def load(path, leaf):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        stacked = path.startswith("blocks/")
        return _load_one(
            files, expected[path], stacked, leaf.shape, shardings[path], dtype
        )

    return jax.tree_util.tree_map_with_path(load, shapes)


def check_fits(directory, config: ModelConfig) -> None:
    """What `load_params` would complain of, before anything is loaded."""
    _Files(directory).expected(config)


def _load_one(files, parts, stacked, shape, sharding, dtype):
    devices_of = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(s.indices(n)[:2] for s, n in zip(index, shape))
        devices_of.setdefault(bounds, []).append(device)
    arrays = []
    for bounds, devices in devices_of.items():
        shard = np.empty([stop - start for start, stop in bounds], dtype)
        if stacked:
            for row, layer in enumerate(range(*bounds[0])):
                shard[row] = files.read(parts[layer], bounds[1:])
        else:
            shard[...] = files.read(parts[0], bounds)
        arrays += [jax.device_put(shard, device) for device in devices]
        jax.block_until_ready(arrays)  # so that the host's copy can go
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


class _Files:
    """The safetensors files of a directory: what they hold, and parts of it."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.file_of = self._index()
        self.shape_of, self.dtype_of = {}, {}
        for file in sorted(set(self.file_of.values())):
            with self._open(file) as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    part = opened.get_slice(name)
                    self.shape_of[name] = tuple(part.get_shape())
                    self.dtype_of[name] = part.get_dtype()
                    self.file_of.setdefault(name, file)
        for name, file in self.file_of.items():
            if name and name not in self.shape_of:
                raise InputError(
                    f"{file} lacks tensor {name}, which the index promises"
                )

    def _index(self) -> dict[str, pathlib.Path]:
        """Tensor → file; a single file is listed under the empty name."""
        index = self.directory / "model.safetensors.index.json"
        single = self.directory / "model.safetensors"
        if index.is_file():
            try:
                weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                return {name: self.directory / f for name, f in weight_map.items()}
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InputError(f"{index} has no readable weight_map") from None
        if single.is_file():
            return {"": single}
        raise InputError(
            f"{self.directory} is not a checkpoint: neither model.safetensors nor "
            "model.safetensors.index.json is there"
        )

    @contextlib.contextmanager
    def _open(self, file):
        """Opened anew for every read: a closed map gives its pages back."""
        try:
            with safe_open(file, framework="numpy") as opened:
                yield opened
        except FileNotFoundError:
            raise InputError(f"{file} is missing; fetch the checkpoint again") from None
        except SafetensorError as error:
            raise InputError(
                f"{file} is truncated or no safetensors file ({error}); fetch it again"
            ) from None

    def expected(self, config: ModelConfig) -> dict[str, list[Tensor]]:
        """The tensors that make each parameter; InputError unless all are there."""
        expected = {
            path: tensors(path, leaf.shape, config)
            for path, leaf in by_path(param_shapes(config)).items()
        }
        self.check([t for parts in expected.values() for t in parts], config)
        return expected

    def check(self, wanted: list[Tensor], config: ModelConfig):
        """Every tensor there, of its shape, of a known dtype, and nothing else."""
        expected = {tensor.name: tensor.file_shape for tensor in wanted}
        missing = [name for name in expected if name not in self.shape_of]
        surplus = [
            name
            for name in self.shape_of
            if name not in expected and not BUFFER.fullmatch(name)
        ]
        if config.tied and "lm_head.weight" in surplus and self._head_is_embedding():
            surplus.remove("lm_head.weight")
        if missing or surplus:
            parts = [
                f"{what} {', '.join(names[:5])}"
                + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                for what, names in (("missing", missing), ("surplus", surplus))
                if names
            ]
            raise InputError(
                f"{self.directory}: tensors {'; '.join(parts)}; "
                "config.json and the weights must be of one checkpoint"
            )
        for name, shape in expected.items():
            if self.shape_of[name] != shape:
                raise InputError(
                    f"{self.directory}: tensor {name} has shape "
                    f"{list(self.shape_of[name])}, the configuration asks for "
                    f"{list(shape)}"
                )
            if self.dtype_of[name] not in ("F32", "BF16", "F16"):
                raise InputError(
                    f"{self.directory}: tensor {name} is {self.dtype_of[name]}; "
                    "F32, BF16 or F16 can be read"
                )

    def _head_is_embedding(self) -> bool:
        """Whether a tied checkpoint's superfluous head is the embedding's copy."""
        head, embedding = "lm_head.weight", "model.embed_tokens.weight"
        if self.shape_of[head] != self.shape_of.get(embedding):
            return False
        rows, step = self.shape_of[head][0], 4096
        return all(
            np.array_equal(
                self._slice(head, (slice(i, min(i + step, rows)),)),
                self._slice(embedding, (slice(i, min(i + step, rows)),)),
            )
            for i in range(0, rows, step)
        )

    def read(self, tensor: Tensor, bounds) -> np.ndarray:
        """A part of the parameter, given by (start, stop) of each of our axes."""
        index, sizes = [], []
        for axes in tensor.axes:
            # Only the first of merged axes is ever split: the rest is contiguous.
            inner = math.prod(tensor.shape[a] for a in axes[1:])
            start, stop = bounds[axes[0]]
            index.append(slice(start * inner, stop * inner))
            sizes += [stop - start, *(tensor.shape[a] for a in axes[1:])]
        part = self._slice(tensor.name, tuple(index)).reshape(sizes)
        ours = [a for axes in tensor.axes for a in axes]
        return part.transpose(np.argsort(ours))

    def _slice(self, name: str, index) -> np.ndarray:
        with self._open(self.file_of[name]) as opened:
            return opened.get_slice(name)[index]


# --- Export -----------------------------------------------------------------------

_DTYPES = {"F32": jnp.float32, "BF16": jnp.bfloat16, "F16": jnp.float16}
_BESIDE = (  # what a checkpoint has beside config and weights, taken over as it is
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


def save_params(
    directory,
    params,
    config: ModelConfig,
    *,
    source=None,
    tokenizer=None,
    dtype=None,
    token_ids=None,
    max_file_bytes: int = 5 * 10**9,
):
    """Write `params` as a checkpoint in the Hugging Face layout.

    source: the directory that the run started from: its config.json, generation
      config and tokenizer are taken over, and its tensors' dtypes unless `dtype` says
      otherwise (without either: the params' own). So import → export is exact.
    tokenizer: directory or file of the tokenizer, where it is not the source's.
    token_ids: such as {"eos_token_id": 2}, for the configs where there is no source.
    Weights beyond `max_file_bytes` are split over files with an index. Everything is
    written beside `directory` and renamed at the end. With several processes all of
    them call this, and process 0 writes.

    Raises:
      InputError: `directory` is there already, or cannot be written.
    """
    directory = pathlib.Path(directory).absolute()
    if directory.exists():
        raise InputError(f"{directory} is there already; give a new directory")
    writes = jax.process_index() == 0
    partial = directory.with_name(f".{directory.name}.partial")
    try:
        if writes:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            own = jax.tree.leaves(params)[0].dtype
            _write_configs(partial, config, source, dtype, own, token_ids)
            for place in (source, tokenizer):
                _copy_beside(partial, place)
        kept = _Files(source).dtype_of if source and dtype is None else {}
        entries = _entries(params, config, kept, dtype)
        files = _split(entries, max_file_bytes)
        for name, part in files.items():
            _write_file(partial / name, part, writes)
        if writes and len(files) > 1:
            _write_index(partial, files)
        if writes:
            partial.rename(directory)
    except OSError as error:
        raise InputError(f"{directory} cannot be written: {error}") from error
    finally:
        if writes:
            shutil.rmtree(partial, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A tensor to write: the parameter, its row if it is stacked, the file's dtype."""

    tensor: Tensor
    param: jax.Array
    row: int | None
    dtype: str

    @property
    def size(self) -> int:
        width = np.dtype(_DTYPES[self.dtype]).itemsize
        return math.prod(self.tensor.shape) * width

    def array(self) -> np.ndarray:
        """The tensor as it lies in the file; every process takes part."""
        param = self.param if self.row is None else _row(self.param, self.row)
        if not getattr(param, "is_fully_addressable", True):
            param = multihost_utils.process_allgather(param, tiled=True)
        ours = [a for axes in self.tensor.axes for a in axes]
        array = np.asarray(param).transpose(ours).reshape(self.tensor.file_shape)
        return np.ascontiguousarray(array, _DTYPES[self.dtype])


@jax.jit
def _row(stacked, row):
    return jax.lax.dynamic_index_in_dim(stacked, row, keepdims=False)


def _entries(params, config, kept: dict[str, str], dtype) -> list[_Entry]:
    names = {np.dtype(value): name for name, value in _DTYPES.items()}
    return [
        _Entry(
            tensor,
            param,
            row if path.startswith("blocks/") else None,
            kept.get(tensor.name) or names[np.dtype(dtype or param.dtype)],
        )
        for path, param in by_path(params).items()
        for row, tensor in enumerate(tensors(path, param.shape, config))
    ]


def _split(entries: list[_Entry], max_bytes: int) -> dict[str, list[_Entry]]:
    """File name → its tensors, as many as fit."""
    parts, filled = [[]], 0
    for entry in entries:
        if parts[-1] and filled + entry.size > max_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(entry)
        filled += entry.size
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    total = len(parts)
    return {
        f"model-{i:05d}-of-{total:05d}.safetensors": part
        for i, part in enumerate(parts, start=1)
    }


def _write_file(path: pathlib.Path, entries: list[_Entry], writes: bool):
    """One safetensors file: the header's length, the header, the bytes in order.

    By hand, because the library wants all of a file's tensors in memory at once.
    """
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for entry in entries:
        header[entry.tensor.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.tensor.file_shape),
            "data_offsets": [offset, offset + entry.size],
        }
        offset += entry.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the data starts at a multiple of 8
    with open(path, "wb") if writes else contextlib.nullcontext() as file:
        if writes:
            file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            array = entry.array()
            if writes:
                file.write(array.reshape(-1).view(np.uint8))


def _write_index(directory, files: dict[str, list[_Entry]]):
    parts = [(entry, name) for name, part in files.items() for entry in part]
    _write_json(
        directory / "model.safetensors.index.json",
        {
            "metadata": {"total_size": sum(entry.size for entry, _ in parts)},
            "weight_map": {entry.tensor.name: name for entry, name in parts},
        },
    )


def _write_configs(directory, config, source, dtype, own_dtype, token_ids):
    name = np.dtype(dtype or own_dtype).name
    here = dataclasses.replace(config, attention_kernel=True)  # no checkpoint says
    if source and read_config(source) == here:
        written = json.loads((pathlib.Path(source) / "config.json").read_text("utf-8"))
        if dtype is not None:
            written["dtype" if "dtype" in written else "torch_dtype"] = name
    else:
        written = describe_config(config) | (token_ids or {}) | {"torch_dtype": name}
    _write_json(directory / "config.json", written)
    if token_ids:
        _write_json(directory / "generation_config.json", token_ids)


def _copy_beside(directory, place):
    """The tokenizer's and the generation's files of a directory, or one file."""
    if place is None:
        return
    place = pathlib.Path(place)
    if place.is_file():
        shutil.copyfile(place, directory / f"tokenizer{place.suffix}")
        place = place.parent
        names = [name for name in _BESIDE if not name.startswith("tokenizer.")]
    else:
        names = _BESIDE
    for name in names:
        if (place / name).is_file():
            shutil.copyfile(place / name, directory / name)


def _write_json(path: pathlib.Path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
