"""Checkpoint directories made to hurt: each is one line, or is read aright."""

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from limr_jax.errors import InputError
from limr_jax.models import from_config, hf_config, hf_files, hf_names, hf_weights

WRITTEN = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 16,
    "tie_word_embeddings": True,
}
CONFIG = hf_config.parse_config(WRITTEN)
SHAPES = {
    tensor.name: tensor.file_shape
    for path, leaf in hf_names.by_path(hf_names.param_shapes(CONFIG)).items()
    for tensor in hf_names.tensors(path, leaf.shape, CONFIG)
}
NAMES = sorted(SHAPES)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "model.norm.weight"


def filled(value: float) -> dict[str, np.ndarray]:
    return {name: np.full(SHAPES[name], value, np.float32) for name in NAMES}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint of ones in one file, and the same in two with an index."""
    root = tmp_path_factory.mktemp("whole")
    for folder in ("one", "two"):
        (root / folder).mkdir()
        (root / folder / "config.json").write_text(json.dumps(WRITTEN))
    save_file(filled(1.0), root / "one" / SINGLE)
    split(root / "two", 1.0)
    return root


def split(folder, value):
    files = {name: f"model-0000{1 + i % 2}.safetensors" for i, name in enumerate(NAMES)}
    (folder / INDEX).write_text(json.dumps({"weight_map": files}))
    for file in set(files.values()):
        part = {k: v for k, v in filled(value).items() if files[k] == file}
        save_file(part, folder / file)


def header_of(data: bytes) -> tuple[dict, bytes]:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(text: str | bytes, rest: bytes, size: int | None = None) -> bytes:
    text = text.encode() if isinstance(text, str) else text
    return (len(text) if size is None else size).to_bytes(8, "little") + text + rest


def changed(**changes):
    """The file with these fields of the last norm's entry changed."""

    def change(data):
        header, rest = header_of(data)
        header[NORM] |= changes
        return with_header(json.dumps(header), rest)

    return change


def renamed(name):
    def change(data):
        header, rest = header_of(data)
        header[name] = header.pop(NORM)
        return with_header(json.dumps(header), rest)

    return change


def overlapping(data):
    header, rest = header_of(data)
    other = "model.layers.0.input_layernorm.weight"
    header[NORM]["data_offsets"] = header[other]["data_offsets"]
    return with_header(json.dumps(header), rest)


def resized(size):
    return lambda data: size.to_bytes(8, "little") + data[8:]


BYTES = {
    "truncated by four": lambda data: data[:-4],
    "half": lambda data: data[: len(data) // 2],
    "seven bytes": lambda data: data[:7],
    "nothing": lambda data: b"",
    "text": lambda data: b"no weights, a page that says 404",
    "more than is said": lambda data: data + b"\0" * 8,
    "a header of no length": resized(0),
    "a header longer than the file": resized(10**6),
    "a header longer than memory": resized(2**63 - 1),
    "a header of the largest length": resized(2**64 - 1),
    "a header cut short": resized(16),
    "a deep header": lambda data: with_header('{"a":' + "[" * 10**5, b""),
    "a deep header that closes": lambda data: with_header(
        '{"a":' + "[" * 10**4 + "]" * 10**4 + "}", b""
    ),
    "a header that is a list": lambda data: with_header("[1, 2]", b""),
    "a header that is not UTF-8": lambda data: with_header(b'{"\xff": 1}', b""),
    "a header of zeros": lambda data: with_header(b"\0" * 64, b""),
    "no tensors": lambda data: with_header("{}", b""),
    "metadata that is a number": lambda data: with_header('{"__metadata__": 3}', b""),
    "offsets beyond the file": changed(data_offsets=[10**9, 10**9 + 32]),
    "offsets backwards": changed(data_offsets=[32, 0]),
    "offsets below 0": changed(data_offsets=[-32, 0]),
    "offsets that are texts": changed(data_offsets=["0", "32"]),
    "offsets as another tensor's": overlapping,
    "a shape larger than its bytes": changed(shape=[9]),
    "a shape below 0": changed(shape=[-8]),
    "a shape beyond 64 bits": changed(shape=[2**62, 2**62]),
    "a shape of no dimension": changed(shape=[]),
    "a dtype of no name": changed(dtype="F128"),
    "a dtype that is a number": changed(dtype=7),
    "an integer dtype": changed(dtype="I32"),
    "half as many doubles": changed(dtype="F64", shape=[4]),
    "eight-bit floats": changed(dtype="F8_E4M3", shape=[32]),
    "truths": changed(dtype="BOOL", shape=[32]),
    "complex numbers": changed(dtype="C64", shape=[4]),
    "another name": renamed("model.norm.wait"),
    "a name of two lines and an escape": renamed("a\n\x1b[31mb"),
    "a name without end": renamed("n" * 10**5),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_of_a_single_file(whole, tmp_path, name):
    folder = tmp_path / "checkpoint"
    shutil.copytree(whole / "one", folder)
    path = folder / SINGLE
    path.write_bytes(BYTES[name](path.read_bytes()))
    with pytest.raises(InputError) as caught:
        hf_weights.check_fits(folder, CONFIG)
    line = str(caught.value)
    assert line.startswith(str(folder)) and "; " in line
    assert line.isprintable() and len(line) < 500, line
    assert from_config.init_digest(str(folder))  # of bytes, whatever they are


def test_refusals_in_full(whole, tmp_path):
    lines = {
        "an integer dtype": f": tensor {NORM} is I32; F32, BF16 or F16 can be read",
        "another name": f": tensors missing {NORM}; surplus model.norm.wait; "
        "config.json and the weights must be of one checkpoint",
        "a name of two lines and an escape": f": tensors missing {NORM}; surplus "
        r"'a \x1b[31mb'; config.json and the weights must be of one checkpoint",
    }
    for name, line in lines.items():
        path = tmp_path / SINGLE
        path.write_bytes(BYTES[name]((whole / "one" / SINGLE).read_bytes()))
        with pytest.raises(InputError) as caught:
            hf_weights.check_fits(tmp_path, CONFIG)
        assert str(caught.value) == f"{tmp_path}{line}"


def first(folder):
    return folder / "model-00001.safetensors"


def reindexed(change):
    def act(folder):
        index = json.loads((folder / INDEX).read_text())
        (folder / INDEX).write_text(json.dumps(change(index)))

    return act


def at(path):
    """The index with the last norm in this file, which is there."""

    def act(folder):
        shutil.copyfile(folder / "model-00001.safetensors", folder.parent / "stolen")
        (folder / "sub").mkdir()
        shutil.copyfile(folder.parent / "stolen", folder / "sub" / "stolen")
        where = path.format(outside=folder.parent)
        reindexed(lambda x: {"weight_map": x["weight_map"] | {NORM: where}})(folder)

    return act


def replaced(make):
    def act(folder):
        path = first(folder)
        path.rename(folder.parent / "aside")
        make(path)

    return act


def swapped(index):
    """Each tensor promised in the other file."""
    files = sorted(set(index["weight_map"].values()))
    other = dict(zip(files, files[::-1], strict=True))
    return {"weight_map": {k: other[v] for k, v in index["weight_map"].items()}}


FOLDERS = {
    "a path upwards": (at("../stolen"), "../stolen is not the name of a file beside"),
    "an absolute path": (at("{outside}/stolen"), "stolen is not the name of a file"),
    "a folder below": (at("sub/stolen"), "sub/stolen is not the name of a file beside"),
    "this very folder": (at("."), ". is not the name of a file beside it"),
    "no name": (at(""), " is not the name of a file beside it"),
    "a NUL in a name": (at("a\0b"), r"'a\x00b' is not the name of a file beside it"),
    "a number": (
        reindexed(lambda x: {"weight_map": dict.fromkeys(NAMES, 3)}),
        "3 is not the name of a file beside it",
    ),
    "a list": (reindexed(lambda x: {"weight_map": NAMES}), "no readable weight_map"),
    "an empty map": (reindexed(lambda x: {"weight_map": {}}), "no readable weight_map"),
    "no map": (reindexed(lambda x: {}), "no readable weight_map"),
    "a tensor nowhere": (
        reindexed(
            lambda x: {"weight_map": x["weight_map"] | {"b": min(x["weight_map"])}}
        ),
        "is missing",
    ),
    "each in the other file": (reindexed(swapped), "which the index promises"),
    "an index of half": (lambda f: (f / INDEX).write_text('{"weight'), "not JSON"),
    "a deep index": (
        lambda f: (f / INDEX).write_text('{"weight_map":' + "[" * 10**5),
        "not JSON",
    ),
    "an index that is a list": (
        lambda f: (f / INDEX).write_text("[]"),
        "holds no JSON object",
    ),
    "an index not UTF-8": (lambda f: (f / INDEX).write_bytes(b'{"\xff'), "not JSON"),
    "an index that leads nowhere": (
        lambda f: ((f / INDEX).unlink(), (f / INDEX).symlink_to("absent")),
        "a link to absent, which is not there",
    ),
    "a missing shard": (replaced(lambda p: None), "is missing; fetch"),
    "a shard that leads nowhere": (
        replaced(lambda p: p.symlink_to("absent")),
        "is missing; fetch the checkpoint again",
    ),
    "a shard that leads to itself": (replaced(lambda p: p.symlink_to(p)), "is missing"),
    "a folder for a shard": (replaced(lambda p: p.mkdir()), "is missing; fetch"),
    "a pipe for a shard": (replaced(os.mkfifo), "is missing; fetch the checkpoint"),
    "a tensor in both": (
        replaced(lambda p: save_file(filled(1.0), p)),
        "is in model-00001.safetensors too",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_an_index_and_its_files(whole, tmp_path, name):
    folder = tmp_path / "checkpoint"
    shutil.copytree(whole / "two", folder)
    act, said = FOLDERS[name]
    act(folder)
    with pytest.raises(InputError) as caught:
        hf_weights.check_fits(folder, CONFIG)
    assert said in str(caught.value) and str(caught.value).isprintable()
    try:
        digest = from_config.init_digest(str(folder))
    except InputError:
        return
    assert digest  # all of its files are here, and in it


def value_of(folder) -> float:
    """What the checkpoint's first norm holds."""
    files = hf_files.TensorFiles(folder)
    tensor = next(t for p in files.expected(CONFIG).values() for t in p)
    return float(files.read(tensor, [(0, n) for n in tensor.shape]).max())


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_are_none(tmp_path, number):
    tensors_of = filled(1.0)
    tensors_of["model.layers.0.input_layernorm.weight"][3] = number
    save_file(tensors_of, tmp_path / SINGLE)
    files = hf_files.TensorFiles(tmp_path)
    with pytest.raises(InputError) as caught:
        for tensor in (t for p in files.expected(CONFIG).values() for t in p):
            files.read(tensor, [(0, n) for n in tensor.shape])
    assert str(caught.value) == (
        f"{tmp_path}/{SINGLE}: tensor model.layers.0.input_layernorm.weight holds nan "
        "or inf; fetch it again"
    )


def test_a_stale_index_beside_a_good_file(whole, tmp_path):
    """The file counts, whether what the index tells of is there or not."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(whole / "one", folder)
    digest = from_config.init_digest(str(folder))
    split(folder, 2.0)
    assert value_of(folder) == 1.0
    assert from_config.init_digest(str(folder)) == digest
    first(folder).unlink()
    assert value_of(folder) == 1.0
    (folder / INDEX).write_text("{")
    assert value_of(folder) == 1.0
    (folder / SINGLE).unlink()
    (folder / SINGLE).symlink_to("absent")
    split(folder, 2.0)
    assert value_of(folder) == 2.0


def test_links_as_the_hubs_cache_has_them(whole, tmp_path):
    folder = tmp_path / "snapshots" / "main"
    folder.mkdir(parents=True)
    for path in (whole / "two").iterdir():
        (folder / path.name).symlink_to(path)
    assert value_of(folder) == 1.0
    assert from_config.init_digest(str(folder)) == from_config.init_digest(
        str(whole / "two")
    )


def test_what_is_read_is_in_the_digest_and_nothing_else(whole, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(whole / "two", folder)
    digest = from_config.init_digest(str(folder))
    save_file(filled(1.0), folder / "optimizer.safetensors")
    (folder / "broken.safetensors").symlink_to("absent")
    assert from_config.init_digest(str(folder)) == digest
    split(folder, 2.0)
    assert from_config.init_digest(str(folder)) != digest


def test_neither_file(tmp_path):
    (tmp_path / SINGLE).symlink_to("absent")
    with pytest.raises(InputError) as caught:
        hf_files.files_of(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is not a checkpoint: neither model.safetensors nor "
        f"model.safetensors.index.json is there; {tmp_path}/model.safetensors is a "
        "link to nothing"
    )
