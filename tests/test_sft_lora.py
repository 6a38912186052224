"""Fine-tuning of adapters beside an int8 base, from first to exported and gone on."""

import json
import pathlib
import runpy
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from test_sft import configure, solved
from tiny_run import MODEL, ROOT

from limr_jax import sft
from limr_jax.errors import InputError
from limr_jax.evaluation import trained_policy
from limr_jax.learner import logprobs
from limr_jax.models import hf_weights, lora
from limr_jax.models.config import ComputeConfig
from limr_jax.models.from_config import load_base, read_model_config
from limr_jax.storage import array_digest, checkpoint, metrics

BASE = ROOT / "limr_jax/assets/arithmetic"
OWN = dict.fromkeys(MODEL, 0)  # the checkpoint's dimensions
FIELDS = {f"model.{name}": size for name, size in OWN.items()} | {
    "model.init": BASE,
    "model.base_dtype": "int8",
    "model.lora.rank": 2,
    "checkpoint.every": 1,
}
EXPORT = runpy.run_path(str(ROOT / "launch/export.py"))["main"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return solved(tmp_path_factory.mktemp("texts") / "solved.jsonl")


@pytest.fixture(scope="module")
def whole(quick_compiler, texts, tmp_path_factory):
    """(workdir of two steps at once, its result, its config)."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    config = configure(texts, 2, **FIELDS)
    return workdir, sft.train(config, workdir), config


@pytest.fixture(scope="module")
def policy(whole):
    """(the model's config, base and adapters after the last step, the mesh)."""
    workdir, _, config = whole
    mesh = sft.make_mesh(1, 2, 4)
    model_config = read_model_config(config.model, 0)
    params = trained_policy.load_params(
        workdir, 2, model_config, mesh, lambda: load_base(config, model_config, mesh)
    )
    return model_config, params, mesh


def exported(workdir, out, *flags, capsys) -> dict:
    EXPORT(["--workdir", str(workdir), "--out", str(out), *flags])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_checkpoints_hold_adapters_and_the_digest_of_the_base(whole, policy):
    workdir, _, config = whole
    model_config, params, mesh = policy
    base, learned = lora.split(params)
    assert base["blocks"]["0"]["mlp"]["up"]["kernel"].dtype == jnp.int8
    with checkpoint.Checkpointer(workdir, read_only=True) as saver:
        path = saver.workdir / "checkpoints/2"
        _, meta = saver.restore(2, {"train": {"params": learned}}, partial=True)
    assert meta == {"base": array_digest.of_tree(base)}
    # Parameters and Adam's two moments of them, and two counts.
    names = json.loads((path / "meta/metadata").read_text())
    assert "lora_a" in str(names) and "kernel" not in str(names)
    for name, x in array_digest.named(learned).items():
        assert name.endswith("lora_a") or np.any(x), name


def test_the_first_loss_is_the_bases(whole, policy):
    """Adapters change nothing yet: −log π of the completions under the int8 base."""
    workdir, _, config = whole
    model_config, params, _ = policy
    batch = next(sft.batches(sft._texts(config)[0], rows=2, seed=config.seed))
    logprob_RY, _ = logprobs.response_logprob(
        jax.device_get(lora.split(params)[0]),
        batch.tokens_RW,
        batch.position_RW,
        segment_BS=batch.segment_RW,
        temperature=1.0,
        response_length=batch.mask_RY.shape[1],
        compute=ComputeConfig(model_config, jnp.float32),
    )
    first, second = metrics.read_metrics(workdir)
    expected = -np.mean(np.asarray(logprob_RY)[batch.mask_RY])
    assert first["loss"] == pytest.approx(expected, abs=1e-5)
    assert first["gradient_norm"] > 0 and second["gradient_norm"] > 0


def test_a_run_that_grows_is_one_at_once(whole, texts, tmp_path, monkeypatch):
    """And goes on beside its own base alone."""
    _, result, config = whole
    workdir = tmp_path / "run"
    sft.train(configure(texts, 1, **FIELDS), workdir)
    with monkeypatch.context() as patch, pytest.raises(InputError) as raised:
        patch.setattr(
            sft,
            "load_base",
            lambda *given: jax.tree.map(lambda x: x + x, load_base(*given)),
        )
        sft.train(config, workdir)
    assert "its adapters are of a base of the digest" in str(raised.value)
    with pytest.raises(InputError, match="model.base_dtype"):
        sft.train(
            configure(texts, 2, **FIELDS | {"model.base_dtype": "float32"}), workdir
        )
    again = sft.train(config, workdir)
    assert again["params_digest"] == result["params_digest"]
    one, two = (
        pathlib.Path(run["model"], "model.safetensors").read_bytes()
        for run in (result, again)
    )
    assert one == two


def test_the_model_is_the_base_with_the_adapters_added(whole, policy, tmp_path, capsys):
    """As launch/export.py writes it; a run may begin from it."""
    workdir, result, _ = whole
    model_config, params, mesh = policy
    expected = lora.merge(params, model_config.lora)
    said = exported(workdir, tmp_path / "model", capsys=capsys)
    assert said["params_digest"] == result["params_digest"]
    for folder in (result["model"], tmp_path / "model"):
        opened = hf_weights.read_config(folder)
        assert opened.lora is None
        # Merged on other meshes, in other orders of sums.
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=0, atol=1e-6),
            hf_weights.load_params(folder, opened, mesh),
            expected,
        )


def test_reinforcement_learning_goes_on_from_the_adapters(
    whole, policy, tmp_path, capsys
):
    """PEFT's directory of them, beside the base that they were trained on."""
    exported(whole[0], tmp_path / "peft", "--peft", capsys=capsys)
    fields = {f"model__{name}": size for name, size in OWN.items()} | {
        "model__init": BASE,
        "model__base_dtype": "int8",
        "model__lora__rank": 2,
        "model__lora__init": tmp_path / "peft",
    }
    problems = tiny_run.write_problems(tmp_path / "train.jsonl", 4)
    made = tiny_run.set_up(tiny_run.configure(problems, **fields))
    learned = lora.split(policy[1])[1]
    jax.tree.map(np.testing.assert_array_equal, made.load_params(), learned)
