"""launch/export.py: a run's checkpoint becomes a directory that others open."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limr_jax import checkpoint, model, weights
from limr_jax.architectures import parse_config
from limr_jax.errors import InputError
from limr_jax.sharding import make_mesh
from limr_jax.text import load_tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "limr_jax" / "assets" / "arithmetic"
SIZES = {
    "width": 16,
    "layers": 2,
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 8,
    "mlp_width": 24,
    "vocab_size": 384,
}
CONFIG = parse_config(
    {
        "model_type": "qwen3",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "intermediate_size": 24,
        "vocab_size": 384,
        "tie_word_embeddings": True,
    }
)


def export(*argv):
    spec = importlib.util.spec_from_file_location("export", ROOT / "launch/export.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(each) for each in argv])


def params_of(step):
    return model.init_params(CONFIG, jax.random.key(step))


def make_run(workdir, **model_fields):
    """A workdir with checkpoints of steps 1 and 2 and an optimiser beside."""
    fields = {"init": "random", "architecture": "qwen3"} | SIZES | model_fields
    config = {"model": fields, "tokenizer": str(TOKENIZER), "num_steps": 2}
    checkpoint.claim(workdir, {"config": config, "data": "", "version": "0"})
    with checkpoint.Checkpointer(workdir, every=1, keep=2) as saver:
        for step in (1, 2):
            params = params_of(step)
            moments = jax.tree.map(jnp.zeros_like, params)
            train = {"params": params, "optimizer": {"mu": moments}}
            saver.save(step, {"step": jnp.int32(step), "train": train}, {})


def load(directory):
    config = weights.read_config(directory)
    assert config == CONFIG
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    return weights.load_params(directory, config, mesh)


def test_last_and_named_steps(tmp_path, capsys):
    make_run(tmp_path / "run")
    export("--workdir", tmp_path / "run", "--out", tmp_path / "out")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["step"] == 2 and result["out"] == str(tmp_path / "out")
    assert result["params_digest"] == checkpoint.params_digest(params_of(2))
    got = load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, got, params_of(2))
    tokenizer, copied = load_tokenizer(TOKENIZER), load_tokenizer(tmp_path / "out")
    assert copied.encode("12+(3*4)") == tokenizer.encode("12+(3*4)")
    assert copied.stop_ids == tokenizer.stop_ids
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_id

    argv = ("--workdir", tmp_path / "run", "--step", "1", "--dtype", "bfloat16")
    export(*argv, "--out", tmp_path / "first")
    want = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params_of(1))
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "first"), want)


def test_the_source_checkpoint_is_taken_over(tmp_path):
    """config.json as it was, with keys that this project does not know."""
    weights.save_params(tmp_path / "base", params_of(0), CONFIG, dtype=jnp.bfloat16)
    path = tmp_path / "base" / "config.json"
    written = json.loads(path.read_text()) | {"initializer_range": 0.02}
    path.write_text(json.dumps(written))
    dimensions = dict.fromkeys(SIZES, 0)
    make_run(tmp_path / "run", init=str(tmp_path / "base"), **dimensions)
    export("--workdir", tmp_path / "run", "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == written
    files = weights._Files(tmp_path / "out")
    assert set(files.dtype_of.values()) == {"BF16"}


def test_mistakes(tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="is there already"):
        export("--workdir", tmp_path / "run", "--out", tmp_path / "there")
    with pytest.raises(InputError, match="the steps there are"):
        export("--workdir", tmp_path / "run", "--out", tmp_path / "o", "--step", 7)
    with pytest.raises(InputError, match="no-run"):
        export("--workdir", tmp_path / "no-run", "--out", tmp_path / "o")
    with pytest.raises(InputError, match="--workdir"):
        export("--out", tmp_path / "o")
    with pytest.raises(InputError, match="not on this machine"):
        export("--workdir", tmp_path / "run", "--out", "gs://bucket/o")
    assert not (tmp_path / "o").exists()
