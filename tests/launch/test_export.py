"""launch/export.py: a run's checkpoint becomes a directory that others open."""

import importlib.util
import json
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import quick

from limr_jax.data.tokenizer import load_tokenizer
from limr_jax.errors import InputError
from limr_jax.models import hf_files, hf_weights, hf_writer, transformer
from limr_jax.models.hf_config import parse_config
from limr_jax.sharding import make_mesh
from limr_jax.storage import checkpoint, files
from limr_jax.storage.array_digest import params_digest
from limr_jax.storage.workdir import claim

ROOT = pathlib.Path(__file__).resolve().parents[2]
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


@quick
def params_of(step):
    return transformer.init_params(CONFIG, jax.random.key(step))


def make_run(workdir, **model_fields):
    """A workdir with checkpoints of steps 1 and 2 and an optimiser beside."""
    fields = {"init": "random", "architecture": "qwen3"} | SIZES | model_fields
    config = {"model": fields, "tokenizer": str(TOKENIZER), "num_steps": 2}
    claim(workdir, {"config": config, "data": "", "version": "0"})
    with checkpoint.Checkpointer(workdir, every=1, keep=2) as saver:
        for step in (1, 2):
            params = params_of(step)
            moments = jax.tree.map(jnp.zeros_like, params)
            train = {"params": params, "optimizer": {"mu": moments}}
            saver.save(step, {"step": jnp.int32(step), "train": train}, {})


def load(directory):
    config = hf_weights.read_config(directory)
    assert config == CONFIG
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    return hf_weights.load_params(directory, config, mesh)


@pytest.mark.slow
def test_last_and_named_steps(tmp_path, capsys):
    make_run(tmp_path / "run")
    export("--workdir", tmp_path / "run", "--out", tmp_path / "out")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["step"] == 2 and result["out"] == str(tmp_path / "out")
    assert result["params_digest"] == params_digest(params_of(2))
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


@pytest.mark.slow
def test_the_source_checkpoint_is_taken_over(tmp_path):
    """config.json as it was, with keys that this project does not know."""
    hf_weights.save_params(tmp_path / "base", params_of(0), CONFIG, dtype=jnp.bfloat16)
    path = tmp_path / "base" / "config.json"
    written = json.loads(path.read_text()) | {"initializer_range": 0.02}
    path.write_text(json.dumps(written))
    dimensions = dict.fromkeys(SIZES, 0)
    make_run(tmp_path / "run", init=str(tmp_path / "base"), **dimensions)
    export("--workdir", tmp_path / "run", "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == written
    files = hf_files.TensorFiles(tmp_path / "out")
    assert set(files.dtype_of.values()) == {"BF16"}


def test_weights_of_the_start_model_do_not_matter(tmp_path):
    """Its settings do: the checkpoint has all parameters, so its export will do."""
    hf_weights.save_params(tmp_path / "base", params_of(0), CONFIG)
    init = str(tmp_path / "base")
    make_run(tmp_path / "run", init=init, **dict.fromkeys(SIZES, 0))
    run = ("--workdir", tmp_path / "run", "--out")
    export(*run, tmp_path / "first")
    export(*run, tmp_path / "second", "--init", tmp_path / "first")
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "second"), params_of(2))


@pytest.mark.slow
def test_two_exports_into_one_folder(tmp_path):
    """The second is refused, however late it comes, and the first stays whole."""
    out = tmp_path / "out"
    refused = pytest.raises(InputError, match="out is there already; give a new dir")
    with refused, files.new_folder(out) as mine:
        (mine / "half").write_text("of a second export")
        hf_weights.save_params(out, params_of(1), CONFIG)
        first = {path: path.read_bytes() for path in out.iterdir()}
    assert {path: path.read_bytes() for path in out.iterdir()} == first
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    jax.tree.map(np.testing.assert_array_equal, load(out), params_of(1))


def test_sigterm_leaves_nothing(tmp_path):
    script = (
        "import os, signal, sys; from limr_jax.storage import files\n"
        "with files.new_folder(sys.argv[1]) as folder:\n"
        "    (folder / 'half').write_text('of a model')\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    signal.pause()"
    )
    command = [sys.executable, "-c", script, tmp_path / "new/deep/out"]
    assert subprocess.run(command, timeout=60).returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["an empty folder", "a file", "a link to nowhere"])
def test_what_is_there_is_not_replaced(tmp_path, there):
    out = tmp_path / "out"

    def put():
        if there == "an empty folder":
            out.mkdir()
        elif there == "a file":
            out.write_text("mine")
        else:
            out.symlink_to(tmp_path / "gone")

    with pytest.raises(InputError) as raised, files.new_folder(out):
        put()  # while it is written
    assert str(raised.value) == f"{out} is there already; give a new directory"
    with pytest.raises(InputError) as raised:  # before anything is read
        export("--workdir", tmp_path / "no-run", "--out", out)
    assert str(raised.value) == f"--out={out} is there already; give a new directory"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_place_below_a_file_is_known_at_once(tmp_path):
    """Before the run is read."""
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(InputError) as raised:
        export("--workdir", tmp_path / "no-run", "--out", file / "out")
    assert str(raised.value) == (
        f"{file}/out cannot be written: {file} is no folder; give another --out"
    )


def test_a_full_disk_leaves_no_export(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf_writer, "_write_file", full)
    with pytest.raises(InputError) as raised:
        hf_weights.save_params(tmp_path / "out", params_of(1), CONFIG)
    assert str(raised.value) == (
        f"{tmp_path}/out: cannot be written (No space left on device); check path, "
        "rights and room"
    )
    assert not [*tmp_path.iterdir()]


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
