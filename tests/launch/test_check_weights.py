"""launch/check_weights.py: a conversion against another implementation's outputs."""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from limr_jax.data.tokenizer import load_tokenizer
from limr_jax.errors import InputError
from limr_jax.models.hf_weights import load_params, read_config
from limr_jax.sharding import make_mesh

ROOT = pathlib.Path(__file__).resolve().parents[2]


def check_weights():
    path = ROOT / "launch" / "check_weights.py"
    spec = importlib.util.spec_from_file_location("check_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def precision():
    """check_weights sets the precision of its own process."""
    before = jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_default_matmul_precision", before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stories260k", "babyllama"])
def test_trained_models_write_what_they_wrote(shared, precision, name):
    directory = shared / "models" / name
    script, config = check_weights(), read_config(directory)
    golden = script.read_golden(directory, config)
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    params = load_params(directory, config, mesh)
    assert script.greedy_agreement(params, golden, config) == 1.0
    if name == "babyllama":
        said = json.loads((directory / "golden.json").read_text())["text"]
        tokenizer = load_tokenizer(directory)
        assert tokenizer.decode(golden["greedy"][0].tolist()).strip() == said.strip()


@pytest.mark.slow
def test_check_weights_command(shared):
    directory = shared / "models" / "gemma2-tiny"
    done = subprocess.run(
        [sys.executable, ROOT / "launch" / "check_weights.py", directory],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0
    assert set(result) == {
        "max_abs_logit_error",
        "greedy_agree",
        "parameters",
        "seconds",
    }
    assert result["max_abs_logit_error"] < 1e-4 and result["greedy_agree"] == 1.0
    assert result["parameters"] == 162_624


@pytest.mark.slow
def test_check_weights_fails_on_other_weights(shared, tmp_path, precision, capsys):
    directory = tmp_path / "wrong"
    shutil.copytree(shared / "models" / "qwen2-tiny", directory)

    for path in directory.iterdir():
        path.chmod(0o644)
    path = directory / "model.safetensors"
    found = load_file(path)
    found["model.norm.weight"] *= 1.001
    save_file(found, path)
    assert check_weights().main([str(directory)]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["max_abs_logit_error"] > 1e-4
    (directory / "golden.npz").unlink()
    (directory / "golden.json").unlink()
    with pytest.raises(InputError, match="nothing to compare with"):
        check_weights().main([str(directory)])


GOOD = {
    "input_ids": np.array([[1, 2, 0], [1, 2, 3]]),
    "lengths": np.array([2, 3]),
    "greedy": np.array([[4], [4]]),
    "logits": np.zeros((2, 3, 5), np.float32),
}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("[1, 2]", "holds no JSON object; fetch the file again"),
        ("3", "holds no JSON object"),
        ("{", "not JSON"),
        ("{}", "greedy_token_ids is no list of token ids; give one"),
        ('{"greedy_token_ids": 3}', "greedy_token_ids is no list"),
        ('{"greedy_token_ids": ["1"]}', "greedy_token_ids is no list"),
        ('{"greedy_token_ids": [[1], 2]}', "greedy_token_ids is no list"),
        ('{"greedy_token_ids": [1, 2], "prompt_ids": 1}', "prompt_ids is no list"),
        ('{"greedy_token_ids": [2, 3]}', "must start with the prompt [1] and go on"),
        ('{"greedy_token_ids": [1]}', "must start with the prompt [1] and go on"),
        ('{"greedy_token_ids": [1, 5]}', "are not all below the vocabulary's 5"),
        ('{"greedy_token_ids": [1, -2]}', "are not all below the vocabulary's 5"),
        (f'{{"greedy_token_ids": [1, {10**30}]}}', "greedy is object [1, 1], not"),
        (GOOD | {"input_ids": np.array([1, 2])}, "input_ids is int64 [2], not what"),
        (GOOD | {"greedy": np.array([4, 4])}, "greedy is int64 [2], not what fits"),
        (GOOD | {"greedy": np.array([["a"], ["b"]])}, "greedy is <U1 [2, 1], not"),
        (GOOD | {"greedy": np.zeros((2, 0), int)}, "greedy is int64 [2, 0], not"),
        (GOOD | {"logits": GOOD["logits"][..., 1:]}, "vocabulary of 5; take the files"),
        (GOOD | {"lengths": np.array([2, 4])}, "lengths from 2 to 4 are not from 1 to"),
        (GOOD | {"lengths": np.array([0, 3])}, "lengths from 0 to 3 are not from 1 to"),
        (b"PK", "cannot be read"),
    ],
)
def test_golden_files_that_are_none(tmp_path, written, said):
    """Each is one line, before any weights are read."""
    (tmp_path / "config.json").write_text('{"bos_token_id": 1}')
    if isinstance(written, dict):
        np.savez(tmp_path / "golden.npz", **written)
    elif isinstance(written, bytes):
        (tmp_path / "golden.npz").write_bytes(written)
    else:
        (tmp_path / "golden.json").write_text(written)
    with pytest.raises(InputError) as caught:
        check_weights().read_golden(tmp_path, types.SimpleNamespace(vocab_size=5))
    line = str(caught.value)
    assert line.startswith(str(tmp_path)) and said in line and "\n" not in line


def test_golden_files_that_are_some(tmp_path):
    config = types.SimpleNamespace(vocab_size=5)
    (tmp_path / "config.json").write_text('{"bos_token_id": 1}')
    (tmp_path / "golden.json").write_text('{"greedy_token_ids": [1, 4, 3]}')
    told = check_weights().read_golden(tmp_path, config)
    assert {name: x.tolist() for name, x in told.items()} == {
        "input_ids": [[1]],
        "lengths": [1],
        "greedy": [[4, 3]],
    }
    np.savez(tmp_path / "golden.npz", **GOOD)
    assert check_weights().read_golden(tmp_path, config).keys() == GOOD.keys()
