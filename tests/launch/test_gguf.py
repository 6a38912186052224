"""launch/gguf.py as a user starts it."""

import json
import subprocess
import sys

import gguf
import numpy as np
import pytest
from tiny_run import ROOT

from limr_jax.models import hf_config, hf_weights
from limr_jax.sharding import make_mesh


def run(*arguments):
    # As a script: its folder is then the first place where Python looks for `gguf`.
    return subprocess.run(
        [sys.executable, ROOT / "launch/gguf.py", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def file(tmp_path):
    """A Qwen2 of one layer."""
    path, width = tmp_path / "one.gguf", 32
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*"abcdef", "ab", "<|end|>"])
    writer.add_token_types([1] * 7 + [3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(7)
    shapes = {
        "token_embd.weight": (8, width),
        "output_norm.weight": (width,),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.attn_q.weight": (width, width),
        "blk.0.attn_q.bias": (width,),
        "blk.0.attn_k.weight": (width // 2, width),
        "blk.0.attn_k.bias": (width // 2,),
        "blk.0.attn_v.weight": (width // 2, width),
        "blk.0.attn_v.bias": (width // 2,),
        "blk.0.attn_output.weight": (width, width),
        "blk.0.ffn_norm.weight": (width,),
        "blk.0.ffn_gate.weight": (2 * width, width),
        "blk.0.ffn_up.weight": (2 * width, width),
        "blk.0.ffn_down.weight": (width, 2 * width),
    }
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_becomes_a_checkpoint_that_loads(file, tmp_path):
    ended = run(file, "--out", tmp_path / "out", "--dtype", "bfloat16")
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    assert result["architecture"] == "Qwen2ForCausalLM"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = hf_config.read_config(tmp_path / "out")
    hf_weights.load_params(tmp_path / "out", config, make_mesh(1, 8, 1))
    again = run(file, "--out", tmp_path / "out")
    assert again.returncode == 2
    assert again.stderr == (
        f"error: --out={tmp_path}/out is there already; give a new directory\n"
    )


def test_a_mistake_is_one_line_and_leaves_nothing(file, tmp_path):
    file.write_bytes(file.read_bytes()[:-5000])
    before = sorted(tmp_path.iterdir())
    ended = run(file, "--out", tmp_path / "out")
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
    assert "truncated or no GGUF file" in ended.stderr
    ended = run(tmp_path / "absent.gguf", "--out", tmp_path / "new/deep/out")
    assert ended.returncode == 2 and "absent.gguf: no such file" in ended.stderr
    assert sorted(tmp_path.iterdir()) == before
