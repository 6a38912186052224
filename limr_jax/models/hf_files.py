"""The safetensors files of a checkpoint directory: which they are, what they hold."""

import contextlib
import math
import pathlib

import numpy as np
from safetensors import SafetensorError, safe_open

from limr_jax.data import jsonl
from limr_jax.errors import InputError, shown
from limr_jax.models.hf_names import BUFFER, Tensor, by_path, param_shapes, tensors
from limr_jax.models.transformer import ModelConfig

_READABLE = ("F32", "BF16", "F16")


def weight_map(directory) -> dict[str, pathlib.Path]:
    """Tensor → file, as the index has it; a single file is under the empty name.

    model.safetensors comes first where both are there, as in transformers: an index
    that an earlier, larger checkpoint left behind says nothing of it.

    Raises:
      InputError: neither is there, the index is none, or it names a file that is not
        in the directory.
    """
    directory = pathlib.Path(directory)
    single = directory / "model.safetensors"
    index = directory / "model.safetensors.index.json"
    if single.is_file():
        return {"": single}
    # A link to nothing goes on to `read_object`, whose error says where it points.
    if not index.is_file() and not index.is_symlink():
        where = f"; {single} is a link to nothing" if single.is_symlink() else ""
        raise InputError(
            f"{directory} is not a checkpoint: neither model.safetensors nor "
            f"model.safetensors.index.json is there{where}"
        )
    files = jsonl.read_object(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise InputError(f"{index} has no readable weight_map; fetch it again")
    for file in files.values():
        # A path out of the directory would be another checkpoint's, or nobody's.
        if not isinstance(file, str) or not _is_name(file):
            raise InputError(
                f"{index}: {shown(file)} is not the name of a file beside it; fetch "
                "the checkpoint again"
            )
    for file in sorted(set(files.values())):
        if not (directory / file).is_file():  # a link to nothing, or a pipe, is none
            raise InputError(
                f"{directory / file} is missing; fetch the checkpoint again"
            )
    return {name: directory / file for name, file in files.items()}


def _is_name(file: str) -> bool:
    return file.isprintable() and "/" not in file and file not in ("", ".", "..")


def files_of(directory) -> list[pathlib.Path]:
    """The files that the checkpoint's tensors are read from, by name."""
    return sorted(set(weight_map(directory).values()))


def check_shapes(
    where, shapes: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]
) -> None:
    """InputError unless `where` holds the expected tensors, of their shapes, no others.

    shapes, expected: name → shape in the file.
    """
    missing = [name for name in expected if name not in shapes]
    surplus = [name for name in shapes if name not in expected]
    if missing or surplus:
        parts = [
            f"{what} {', '.join(map(shown, names[:5]))}"
            + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            for what, names in (("missing", missing), ("surplus", surplus))
            if names
        ]
        raise InputError(
            f"{where}: tensors {'; '.join(parts)}; "
            "config.json and the weights must be of one checkpoint"
        )
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise InputError(
                f"{where}: tensor {name} has shape {list(shapes[name])}, the "
                f"configuration asks for {list(shape)}; they must be of one checkpoint"
            )


class TensorFiles:
    """What the safetensors files of a directory hold, and parts of it.

    promised: as `weight_map` gives it, for other files than a checkpoint's.
    """

    def __init__(self, directory, promised: dict[str, pathlib.Path] | None = None):
        self.directory = pathlib.Path(directory)
        promised = weight_map(directory) if promised is None else promised
        self.file_of, self.shape_of, self.dtype_of = {}, {}, {}
        for file in sorted(set(promised.values())):
            # Headers alone: names, shapes and dtypes, no numbers.
            with self._open(file) as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    if name in self.file_of:
                        raise InputError(
                            f"{file}: tensor {shown(name)} is in "
                            f"{self.file_of[name].name} too; fetch the checkpoint again"
                        )
                    part = opened.get_slice(name)
                    self.file_of[name] = file
                    self.shape_of[name] = tuple(part.get_shape())
                    self.dtype_of[name] = part.get_dtype()
        for name, file in promised.items():
            # The empty name, of a single file, promises nothing.
            if name and self.file_of.get(name) != file:
                raise InputError(
                    f"{file} lacks tensor {shown(name)}, which the index promises; "
                    "fetch the checkpoint again"
                )

    @contextlib.contextmanager
    def _open(self, file):
        """Opened anew for every read: a closed map gives its pages back."""
        try:
            with safe_open(file, framework="numpy") as opened:
                yield opened
        except OSError as error:
            raise InputError(
                f"{file} cannot be read ({error}); check path and rights"
            ) from None
        except SafetensorError as error:
            raise InputError(
                f"{file} is truncated or no safetensors file "
                f"({' '.join(str(error).split())}); fetch it again"
            ) from None

    def expected(self, config: ModelConfig) -> dict[str, list[Tensor]]:
        """The tensors that make each parameter; InputError unless all are there."""
        expected = {
            path: tensors(path, leaf.shape, config)
            for path, leaf in by_path(param_shapes(config)).items()
        }
        self.check([t for parts in expected.values() for t in parts], config)
        return expected

    def check(self, template: list[Tensor], config: ModelConfig):
        """Every tensor there, of its shape, of a known dtype, and nothing else."""
        expected = {tensor.name: tensor.file_shape for tensor in template}
        # Old checkpoints hold buffers too, which config.json gives.
        shapes = {
            name: shape
            for name, shape in self.shape_of.items()
            if name in expected or not BUFFER.fullmatch(name)
        }
        head = "lm_head.weight"
        if config.tied and head in shapes and self._head_is_embedding():
            del shapes[head]
        check_shapes(self.directory, shapes, expected)
        for name in expected:
            if self.dtype_of[name] not in _READABLE:
                raise InputError(
                    f"{self.directory}: tensor {name} is {self.dtype_of[name]}; "
                    "F32, BF16 or F16 can be read"
                )

    def _head_is_embedding(self) -> bool:
        """Whether a tied checkpoint's superfluous head is the embedding's copy."""
        head, embedding = "lm_head.weight", "model.embed_tokens.weight"
        if self.shape_of[head] != self.shape_of.get(embedding):
            return False
        if not {self.dtype_of[head], self.dtype_of[embedding]} <= {*_READABLE}:
            return False
        # In parts: both whole would be gigabytes of memory, for one answer.
        rows, step = self.shape_of[head][0], 4096
        return all(
            np.array_equal(
                self._slice(head, (slice(i, min(i + step, rows)),)),
                self._slice(embedding, (slice(i, min(i + step, rows)),)),
            )
            for i in range(0, rows, step)
        )

    def read(self, tensor: Tensor, bounds) -> np.ndarray:
        """A part of the parameter, given by (start, stop) of each of our axes.

        InputError if a number in it is not finite.
        """
        index, sizes = [], []
        for axes in tensor.axes:
            # Only the first of merged axes is ever split: the rest is contiguous.
            inner = math.prod(tensor.shape[a] for a in axes[1:])
            start, stop = bounds[axes[0]]
            index.append(slice(start * inner, stop * inner))
            sizes += [stop - start, *(tensor.shape[a] for a in axes[1:])]
        part = self._slice(tensor.name, tuple(index)).reshape(sizes)
        if not np.isfinite(part).all():
            where = f"{self.file_of[tensor.name]}: tensor {tensor.name}"
            raise InputError(f"{where} holds nan or inf; fetch it again")
        ours = [a for axes in tensor.axes for a in axes]
        # From the file's order of axes to ours.
        return part.transpose(np.argsort(ours))

    def _slice(self, name: str, index) -> np.ndarray:
        with self._open(self.file_of[name]) as opened:
            return opened.get_slice(name)[index]
