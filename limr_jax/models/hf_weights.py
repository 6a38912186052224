"""Hugging Face safetensors ↔ params, streamed shard by shard."""

import dataclasses
import json
import pathlib
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from limr_jax.data import tokenizer_files
from limr_jax.models import hf_writer
from limr_jax.models.hf_config import describe_config, read_config
from limr_jax.models.hf_files import TensorFiles
from limr_jax.models.hf_names import Tensor, by_path, param_shapes, tensors
from limr_jax.models.int8 import SCALE, quantise, replace_kernels
from limr_jax.models.transformer import ModelConfig
from limr_jax.sharding import param_rows, param_shardings
from limr_jax.storage.files import new_folder

__all__ = ["check_fits", "load_params", "read_config", "save_params"]


def load_params(
    directory,
    config: ModelConfig,
    mesh,
    dtype=jnp.float32,
    *,
    keep_fp32: bool = False,
    int8: bool = False,
):
    """The checkpoint's parameters on `mesh`, in `dtype`, by `param_shardings`.

    keep_fp32: those that sharding.py's table keeps in fp32 are that, whatever `dtype`.
    int8: the projections' kernels are quantised as they are read, with scales beside.

    Each process reads only the byte ranges of its own devices' shards, one shard at a
    time: beside what the devices hold, the host holds one shard and one tensor of it.
    To quantise, it reads whole channels, of which a shard may have a part.

    Raises:
      InputError: not a checkpoint, a truncated file, or a missing, surplus or
        misshapen tensor, or one that is not finite, named.
    """
    files, shapes = TensorFiles(directory), param_shapes(config)
    expected = files.expected(config)
    if int8:
        load = partial(_load_int8, files, expected, mesh)
        shapes = replace_kernels(shapes, load)
    kept = jax.tree.map(lambda row: keep_fp32 and row.fp32, param_rows(shapes))
    dtypes = jax.tree.map(lambda keep: jnp.float32 if keep else dtype, kept)
    return load_tensors(
        files,
        expected,
        shapes=shapes,
        shardings=param_shardings(mesh, shapes),
        dtypes=dtypes,
    )


def load_tensors(files: TensorFiles, expected, shapes, shardings, dtypes):
    """Parameters of these shapes, shardings and dtypes, each a tree; shard by shard.

    expected: path → the tensors that make a parameter, as `TensorFiles.expected` has
    them. An array among the shapes is loaded already, and stays.
    """

    def load(path, leaf, sharding, dtype):
        if isinstance(leaf, jax.Array):
            return leaf
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        stacked = path.startswith("blocks/")
        return _load_one(
            files,
            expected[path],
            stacked=stacked,
            shape=leaf.shape,
            sharding=sharding,
            dtype=dtype,
        )

    return jax.tree_util.tree_map_with_path(load, shapes, shardings, dtypes)


def check_fits(directory, config: ModelConfig) -> None:
    """What `load_params` would complain of, before anything is loaded."""
    TensorFiles(directory).expected(config)


def _devices_of(sharding, shape) -> dict:
    """(start, stop) of each axis of a shard → this process's devices that have it."""
    devices_of = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(s.indices(n)[:2] for s, n in zip(index, shape))
        devices_of.setdefault(bounds, []).append(device)
    return devices_of


def _load_one(files, parts, stacked, shape, sharding, dtype):
    arrays = []
    # Devices with the same part of the parameter get copies of one read.
    for bounds, devices in _devices_of(sharding, shape).items():
        shard = np.empty([stop - start for start, stop in bounds], dtype)
        if stacked:
            # A stack's first axis is its layers, each a tensor of its own in the file.
            for row, layer in enumerate(range(*bounds[0])):
                shard[row] = files.read(parts[layer], bounds[1:])
        else:
            shard[...] = files.read(parts[0], bounds)
        arrays += [jax.device_put(shard, device) for device in devices]
        jax.block_until_ready(arrays)  # so that the host's copy can go
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _load_int8(files, expected, mesh, path, leaf, axes):
    """A projection's kernel on `mesh`, int8, and the scales of its channels.

    path, leaf: its place in the parameters, its shape. axes: those that are summed.
    """
    shapes = jax.eval_shape(partial(quantise, axes=axes), leaf)
    named = {path: shapes[0], f"{path.rpartition('/')[0]}/{SCALE}": shapes[1]}
    places = [*param_shardings(mesh, named).values()]
    stacked = path.startswith("blocks/")
    kernels, scales = [], []
    for bounds, devices in _devices_of(places[0], leaf.shape).items():
        # A channel's scale is of all its weights, so those are read whole.
        read = [(0, leaf.shape[a]) if a in axes else b for a, b in enumerate(bounds)]
        part = tuple(
            slice(*bounds[a]) if a in axes else slice(None) for a in range(leaf.ndim)
        )
        kernel = np.empty([stop - start for start, stop in bounds], np.int8)
        scale = np.empty(
            [stop - start for a, (start, stop) in enumerate(bounds) if a not in axes],
            np.float32,
        )
        if stacked:
            inside = tuple(a - 1 for a in axes)
            for row, layer in enumerate(range(*bounds[0])):
                weights = files.read(expected[path][layer], read[1:])
                steps, scale[row] = quantise(weights, inside)
                kernel[row] = steps[part[1:]]
        else:
            steps, scale[...] = quantise(files.read(expected[path][0], read), axes)
            kernel[...] = steps[part]
        # Kernel and scale lie alike along the channels: the same devices have both.
        kernels += [jax.device_put(kernel, device) for device in devices]
        scales += [jax.device_put(scale, device) for device in devices]
        jax.block_until_ready((kernels, scales))  # so that the host's copy can go
    return tuple(
        jax.make_array_from_single_device_arrays(shape.shape, place, arrays)
        for shape, place, arrays in zip(shapes, places, (kernels, scales))
    )


# --- Export -----------------------------------------------------------------------

ABOUT = "limr_jax.json"
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
    about=None,
    max_file_bytes: int = 5 * 10**9,
):
    """Write `params` as a checkpoint in the Hugging Face layout.

    source: the directory that the run started from: its config.json, generation
      config and tokenizer are taken over, and its tensors' dtypes unless `dtype` says
      otherwise (without either: the params' own). So import → export is exact.
    tokenizer: directory or file of the tokenizer, where it is not the source's.
    token_ids: such as {"eos_token_id": 2}, for the configs where there is no source.
    about: what limr_jax.json says of it; None: there is no such file.
    Weights beyond `max_file_bytes` are split over files with an index. The directory is
    there whole or not at all. With several processes all call this, process 0 writes.

    Raises:
      InputError: `directory` is there already, or cannot be written.
    """
    writes = jax.process_index() == 0
    with new_folder(directory, writes=writes) as folder:
        if writes:
            own = jax.tree.leaves(params)[0].dtype
            _write_configs(
                folder,
                config,
                source=source,
                dtype=dtype,
                own_dtype=own,
                token_ids=token_ids,
            )
            _copy_beside(folder, source, tokenizer)
            if about is not None:
                hf_writer.write_json(folder / ABOUT, about)
        kept = TensorFiles(source).dtype_of if source and dtype is None else {}
        entries = tensor_entries(params, config, kept=kept, dtype=dtype)
        hf_writer.write_tensors(
            folder, entries, max_file_bytes=max_file_bytes, writes=writes
        )


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A tensor to write: the parameter, its row if it is stacked, the file's dtype."""

    tensor: Tensor
    param: jax.Array
    row: int | None
    dtype: str

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.file_shape

    def array(self) -> np.ndarray:
        """The tensor as it lies in the file; every process takes part."""
        param = self.param if self.row is None else _row(self.param, self.row)
        # Other processes hold parts of it: they all have to come here together.
        if not getattr(param, "is_fully_addressable", True):
            param = multihost_utils.process_allgather(param, tiled=True)
        # Our axes in the order in which the file's are made of them.
        ours = [a for axes in self.tensor.axes for a in axes]
        array = np.asarray(param).transpose(ours).reshape(self.tensor.file_shape)
        return np.ascontiguousarray(array, hf_writer.DTYPES[self.dtype])


@jax.jit
def _row(stacked, row):
    # Jitted with a traced row: one program for all layers of a stack.
    return jax.lax.dynamic_index_in_dim(stacked, row, keepdims=False)


def tensor_entries(
    params, config: ModelConfig, kept: dict[str, str], dtype, prefix: str = ""
) -> list[hf_writer.Entry]:
    """What `hf_writer.write_tensors` takes, of these parameters.

    kept: tensor → safetensors' name of its dtype; the others have `dtype`, or None:
    their own. prefix: before the tensors' names.
    """
    names = {np.dtype(value): name for name, value in hf_writer.DTYPES.items()}
    return [
        _Entry(
            tensor=renamed(tensor, prefix),
            param=param,
            row=row if path.startswith("blocks/") else None,
            dtype=kept.get(tensor.name) or names[np.dtype(dtype or param.dtype)],
        )
        for path, param in by_path(params).items()
        for row, tensor in enumerate(tensors(path, param.shape, config))
    ]


def renamed(tensor: Tensor, prefix: str) -> Tensor:
    """The tensor with a prefix before its name in the file."""
    return dataclasses.replace(tensor, name=prefix + tensor.name)


def _write_configs(directory, config, source, dtype, own_dtype, token_ids):
    name = np.dtype(dtype or own_dtype).name
    # No checkpoint says which kernel computes it, or has adapters.
    here = dataclasses.replace(
        config, attention_kernel=True, refused_kernels=(), lora=None
    )
    if source and read_config(source) == here:
        written = json.loads((pathlib.Path(source) / "config.json").read_text("utf-8"))
        if dtype is not None:
            # transformers 5 calls it dtype, earlier ones torch_dtype.
            written["dtype" if "dtype" in written else "torch_dtype"] = name
    else:
        written = describe_config(here) | (token_ids or {}) | {"torch_dtype": name}
    hf_writer.write_json(directory / "config.json", written)
    if token_ids:
        hf_writer.write_json(directory / "generation_config.json", token_ids)


def _copy_beside(directory, source, tokenizer):
    """The tokenizer's and the generation's files, of one place alone.

    Two tokenizers in a folder would be read as one: the source's template, say, with
    the other's vocabulary.
    """
    if source is None and tokenizer is None:
        return
    place, names = pathlib.Path(source if tokenizer is None else tokenizer), _BESIDE
    if tokenizer is not None:
        file = tokenizer_files.find(place)
        # Under the name by which every library looks for it.
        shutil.copyfile(file, directory / f"tokenizer{file.suffix}")
        if place.is_file():
            # No other tokenizer.* beside the file that was named may replace it.
            names = [name for name in names if not name.startswith("tokenizer.")]
        place = file.parent
    for name in names:
        if (place / name).is_file():
            shutil.copyfile(place / name, directory / name)
