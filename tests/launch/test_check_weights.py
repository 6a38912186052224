"""launch/check_weights.py: a conversion against another implementation's outputs."""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import jax
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
