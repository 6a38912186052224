"""Checkpoints in and out, exactly; and what is said when they are broken."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_run import ROOT

from limr_jax.errors import InputError
from limr_jax.models import hf_files, hf_names, hf_writer
from limr_jax.models.hf_weights import load_params, read_config, save_params
from limr_jax.models.transformer import ModelConfig, Rope
from limr_jax.sharding import make_mesh

CONFIG = ModelConfig(  # a small Gemma 3: two groups and a layer of tail
    vocab_size=32,
    width=16,
    layers=5,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=24,
    pattern=("sliding", "full"),
    window=4,
    rope=Rope(base=1e6),
    local_rope=Rope(base=1e4),
    activation="gelu_tanh",
    qk_norm=True,
    norm_plus_one=True,
    out_norms=True,
    scale_embedding=True,
)


def one_device():
    return make_mesh(1, 1, 1, jax.devices()[:1])


def random_params(config=CONFIG, seed=0):
    random = np.random.default_rng(seed)
    shapes = hf_names.param_shapes(config)
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.standard_normal(leaf.shape), jnp.float32),
        shapes,
    )


@pytest.fixture
def checkpoint(tmp_path):
    """CONFIG's checkpoint, as one file."""
    directory = tmp_path / "checkpoint"
    save_params(directory, random_params(), CONFIG, token_ids={"eos_token_id": 1})
    return directory


@pytest.mark.slow
def test_what_attended_without_a_kernel_is_the_same_checkpoint(tmp_path):
    """Of a random model, of which no config.json says: it is written in the end."""
    config = dataclasses.replace(CONFIG, attention_kernel=False)  # model.attention=xla
    save_params(tmp_path / "checkpoint", random_params(), config)
    assert read_config(tmp_path / "checkpoint") == CONFIG


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_weight_that_is_no_number_is_named(tmp_path, value, dtype):
    """In a layer of a stack; a policy with it would learn nothing, and say nothing."""
    params = random_params()
    kernel = params["blocks"]["1"]["mlp"]["up"]["kernel"]
    params["blocks"]["1"]["mlp"]["up"]["kernel"] = kernel.at[1, 2, 3].set(value)
    directory = tmp_path / "checkpoint"
    save_params(directory, params, CONFIG, dtype=dtype)
    with pytest.raises(InputError) as caught:
        load_params(directory, CONFIG, one_device())
    assert str(caught.value) == (
        f"{directory}/model.safetensors: tensor model.layers.3.mlp.up_proj.weight "
        "holds nan or inf; fetch it again"
    )


def contents(directory):
    """Tensor → (dtype, shape, bytes) of all files of a checkpoint."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header, data = json.loads(file.read(size)), file.read()
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            found[name] = entry["dtype"], entry["shape"], data[start:stop]
    return found


def assert_same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert jax.tree.structure(got) == jax.tree.structure(want)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "qwen2-tiny",
        "qwen2-untied-bf16",
        "qwen3-tiny",
        "llama3-tiny",
        "gemma2-tiny",
        "gemma3-tiny",
        "stories260k",
        "babyllama",
    ],
)
def test_import_then_export_is_byte_identical(shared, tmp_path, name):
    source = shared / "models" / name
    config = read_config(source)
    params = load_params(source, config, one_device())
    save_params(tmp_path / "out", params, config, source=source)
    assert contents(tmp_path / "out") == contents(source)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(
        (source / "config.json").read_text()
    )
    for beside in ("tokenizer.model", "generation_config.json"):
        if (source / beside).exists():
            copied = (tmp_path / "out" / beside).read_bytes()
            assert copied == (source / beside).read_bytes()


@pytest.mark.parametrize("named", ["file", "folder"])
def test_the_tokenizer_is_of_one_place(checkpoint, tmp_path, named):
    """Of two the source's tokenizer.json would be read, and its template."""
    for name in ("tokenizer.json", "chat_template.jinja"):
        (checkpoint / name).write_text("the source's")
    (tmp_path / "other").mkdir()
    file = tmp_path / "other/spm.model"
    file.write_bytes((ROOT / "limr_jax/assets/arithmetic/tokenizer.model").read_bytes())
    params, config = random_params(), read_config(checkpoint)
    tokenizer = file if named == "file" else file.parent
    save_params(
        tmp_path / "out", params, config, source=checkpoint, tokenizer=tokenizer
    )
    beside = {path.name for path in (tmp_path / "out").glob("[!cmg]*")}
    assert beside == {"tokenizer.model"}
    assert not (tmp_path / "out/chat_template.jinja").exists()
    assert (tmp_path / "out/tokenizer.model").read_bytes() == file.read_bytes()
    save_params(tmp_path / "own", params, config, source=checkpoint)
    assert (tmp_path / "own/tokenizer.json").read_text() == "the source's"


def test_layout_by_hand(tmp_path):
    """Row 8·h + c of q_proj is channel c of head h; o_proj's columns likewise."""
    params = random_params()
    save_params(tmp_path / "out", params, CONFIG)
    files = load_file(tmp_path / "out" / "model.safetensors")
    # Layers 0, 2 are the groups of position 0; layer 3 is group 1 of position 1.
    attention = params["blocks"]["1"]["attention"]
    q = files["model.layers.3.self_attn.q_proj.weight"]
    assert q.shape == (32, 16)
    assert q[8 * 2 + 5, 7] == attention["q"]["kernel"][1, 7, 2, 5]
    o = files["model.layers.3.self_attn.o_proj.weight"]
    assert o.shape == (16, 32)
    assert o[7, 8 * 2 + 5] == attention["o"]["kernel"][1, 2, 5, 7]
    down = files["model.layers.4.mlp.down_proj.weight"]
    assert down[3, 20] == params["tail"]["0"]["mlp"]["down"]["kernel"][20, 3]
    norm = files["model.layers.2.pre_feedforward_layernorm.weight"]
    np.testing.assert_array_equal(norm, params["blocks"]["0"]["mlp_norm"]["scale"][1])


@pytest.mark.parametrize("shape", [(1, 2, 4), (2, 4, 1)])
def test_sharded_import_reads_every_byte_once(checkpoint, monkeypatch, shape):
    read = []
    slice_of = hf_files.TensorFiles._slice

    def counted(self, name, index):
        part = slice_of(self, name, index)
        read.append(part.size)
        return part

    monkeypatch.setattr(hf_files.TensorFiles, "_slice", counted)
    params = load_params(checkpoint, CONFIG, make_mesh(*shape))
    assert_same(params, random_params())
    assert sum(read) == sum(leaf.size for leaf in jax.tree.leaves(params))
    kernel = params["blocks"]["0"]["mlp"]["up"]["kernel"]
    parts = kernel.addressable_shards[0].data.shape
    assert parts == (2, 16 // shape[1], 24 // shape[2])


def test_split_files_and_index(tmp_path):
    params = random_params()
    save_params(tmp_path / "one", params, CONFIG)
    save_params(tmp_path / "many", params, CONFIG, max_file_bytes=4000)
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(files)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert index["metadata"]["total_size"] == sum(
        len(data) for _, _, data in contents(tmp_path / "one").values()
    )
    for path in (tmp_path / "many").glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:  # the library reads them too
            sizes = [file.get_tensor(name).nbytes for name in file.keys()]  # noqa: SIM118
        assert sum(sizes) <= 4000 or len(sizes) == 1
    assert_same(
        load_params(tmp_path / "many", CONFIG, make_mesh(1, 2, 2, jax.devices()[:4])),
        params,
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dtypes(tmp_path, checkpoint, dtype):
    params = load_params(checkpoint, CONFIG, one_device(), dtype)
    rounded = jax.tree.map(lambda x: x.astype(dtype), random_params())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(dtype)}
    assert_same(params, rounded)
    # Written in 16 bits, read in 32: the same numbers.
    save_params(tmp_path / "half", random_params(), CONFIG, dtype=dtype)
    written = json.loads((tmp_path / "half" / "config.json").read_text())
    assert written["torch_dtype"] == np.dtype(dtype).name
    wide = load_params(tmp_path / "half", CONFIG, one_device())
    assert_same(wide, jax.tree.map(lambda x: x.astype(jnp.float32), rounded))


def test_export_without_a_source_stands_alone(checkpoint):
    assert read_config(checkpoint) == CONFIG
    assert_same(load_params(checkpoint, CONFIG, one_device()), random_params())
    generation = json.loads((checkpoint / "generation_config.json").read_text())
    assert generation == {"eos_token_id": 1}


def test_tokenizer_of_its_own(shared, tmp_path, checkpoint):
    piece = shared / "tokenizers" / "sentencepiece" / "test_model.model"
    save_params(
        tmp_path / "out", random_params(), CONFIG, source=checkpoint, tokenizer=piece
    )
    copied = tmp_path / "out" / "tokenizer.model"
    assert copied.read_bytes() == piece.read_bytes()


def rewritten(directory, change):
    """The checkpoint's tensors, changed by `change(dict)`."""
    path = directory / "model.safetensors"
    found = load_file(path)
    change(found)
    save_file(found, path)
    return directory


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("model.norm.weight"), "missing model.norm.weight"),
        (lambda t: t.update({"a.b": np.zeros(1)}), "surplus a.b"),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(15, np.float32)}),
            r"model.norm.weight has shape \[15\], the configuration asks for \[16\]",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(16, np.int32)}),
            "model.norm.weight is I32",
        ),
        (
            lambda t: t.update({"lm_head.weight": np.zeros((32, 16), np.float32)}),
            "surplus lm_head.weight",
        ),
    ],
)
def test_wrong_tensors_are_named(checkpoint, change, message):
    rewritten(checkpoint, change)
    with pytest.raises(InputError, match=message) as caught:
        load_params(checkpoint, CONFIG, one_device())
    assert "\n" not in str(caught.value)


def test_what_some_files_carry_besides(checkpoint):
    """A tied head that is the embedding's copy, and old Llama's rotary buffers."""

    def change(found):
        found["lm_head.weight"] = found["model.embed_tokens.weight"].copy()
        name = "model.layers.0.self_attn.rotary_emb.inv_freq"
        found[name] = np.zeros(4, np.float32)

    rewritten(checkpoint, change)
    assert_same(load_params(checkpoint, CONFIG, one_device()), random_params())


def test_broken_files_are_named(checkpoint, tmp_path):
    path = checkpoint / "model.safetensors"
    whole = path.read_bytes()
    for broken in (whole[:-4], whole[:100], b"", b"not safetensors at all"):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="model.safetensors is truncated"):
            load_params(checkpoint, CONFIG, one_device())
    path.unlink()
    with pytest.raises(InputError, match="is not a checkpoint"):
        load_params(checkpoint, CONFIG, one_device())
    save_params(tmp_path / "many", random_params(), CONFIG, max_file_bytes=4000)
    first = sorted((tmp_path / "many").glob("*.safetensors"))[0]
    first.rename(tmp_path / "aside")
    with pytest.raises(InputError, match=f"{first.name} is missing"):
        load_params(tmp_path / "many", CONFIG, one_device())
    second = sorted((tmp_path / "many").glob("*.safetensors"))[0]
    shutil.copyfile(second, first)
    with pytest.raises(InputError, match="is in model-00001-of-.* too; fetch"):
        load_params(tmp_path / "many", CONFIG, one_device())
    index = tmp_path / "many" / "model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(InputError, match="no readable weight_map"):
        load_params(tmp_path / "many", CONFIG, one_device())


def test_a_broken_export_leaves_nothing(tmp_path, monkeypatch):
    write_file, written = hf_writer._write_file, []

    def full_disk(path, entries, writes):
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        write_file(path, entries, writes)

    monkeypatch.setattr(hf_writer, "_write_file", full_disk)
    with pytest.raises(InputError, match="No space left"):
        save_params(tmp_path / "out", random_params(), CONFIG, max_file_bytes=4000)
    assert written and list(tmp_path.iterdir()) == []


def test_export_overwrites_nothing(checkpoint):
    before = contents(checkpoint)
    with pytest.raises(InputError, match="is there already"):
        save_params(checkpoint, random_params(seed=1), CONFIG)
    assert contents(checkpoint) == before


# --- Memory -------------------------------------------------------------------------

_PEAK = """
import sys, jax
from limr_jax.sharding import make_mesh
from limr_jax.models.hf_weights import load_params, read_config
jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
def memory(name):  # not ru_maxrss, which begins with the parent's
    with open("/proc/self/status") as file:
        return next(int(l.split()[1]) * 1024 for l in file if l.startswith(name))
mesh, config = make_mesh(1, -1, 1), read_config(sys.argv[1])
before = memory("VmRSS")
params = load_params(sys.argv[1], config, mesh)
leaves = jax.tree.leaves(params)
held = sum(s.data.nbytes for x in leaves for s in x.addressable_shards)
shard = max(x.addressable_shards[0].data.nbytes for x in leaves)
extra = memory("VmHWM") - before - held
print(f"held {held / 2**20:.0f} MiB, largest shard {shard / 2**20:.0f} MiB, "
      f"peak beyond what is held {extra / 2**20:.0f} MiB")
assert extra <= 1.5 * shard + 256 * 2**20
"""


@pytest.mark.soak
@pytest.mark.parametrize("devices", [1, 4])
def test_peak_memory_of_a_2_gb_checkpoint(tmp_path, devices):
    """Beside the devices' own, at most 1.5 × the largest stacked shard + 256 MiB."""
    config = ModelConfig(
        vocab_size=32_000,
        width=1024,
        layers=28,
        heads=16,
        kv_heads=8,
        head_dim=128,
        mlp_width=4096,
        rope=Rope(base=1e6),
        qk_norm=True,
        tied=True,
    )
    shapes = hf_names.param_shapes(config)
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1e-3), shapes)
    save_params(tmp_path / "big", params, config, max_file_bytes=10**9)
    size = sum(path.stat().st_size for path in (tmp_path / "big").iterdir())
    assert size > 2 * 10**9
    del params
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, tmp_path / "big", str(devices)],
        capture_output=True,
        text=True,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
