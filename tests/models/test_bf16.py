"""What bf16 costs: |Δ log p| of the same tokens between rollout and learner.

`pytest tests/models/test_bf16.py -s` prints the table that tests/RECORDS.md has.
"""

import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import ROOT

from limr_jax import jit, sharding
from limr_jax.data.problems import load_problems, tokenize
from limr_jax.data.prompts import host_prompts, left_pad
from limr_jax.data.tokenizer import load_tokenizer
from limr_jax.learner import logprobs
from limr_jax.models import hf_weights
from limr_jax.models.config import ComputeConfig
from limr_jax.prng import stream_key
from limr_jax.rollout import generate as rollout
from limr_jax.rollout.sampling import Sampling
from limr_jax.rollout.types import GenerateConfig

EMBEDDED = ROOT / "limr_jax/assets/arithmetic"


def one_device():
    return sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])


def apart(folder: pathlib.Path, prompts, *, dtype, group, length, stop_ids):
    """Δ log p, learner's less rollout's, of every token that was drawn at T = 1."""
    mesh, config = one_device(), hf_weights.read_config(folder)
    params = hf_weights.load_params(folder, config, mesh)
    compute = ComputeConfig(config, dtype)
    prompt_PL, position_PL = prompts
    generate = partial(
        rollout.generate,
        config=GenerateConfig(
            group=group,
            response_length=length,
            slots=len(prompt_PL) * group,
            compactions=0,
            stop_ids=stop_ids,
            pad_id=0,
        ),
        compute=compute,
    )
    learned = partial(
        logprobs.response_logprobs,
        response_length=length,
        micro_batch_rows=64,
        compute=compute,
    )
    problem_P = jnp.arange(len(prompt_PL))
    with jax.set_mesh(mesh):
        written = jit.jit(mesh, generate)(
            params,
            prompt_PL,
            position_PL,
            problem_P,
            stream_key(0, "rollout", 0),
            Sampling(),
        )
        logprob_BT = jit.jit(mesh, learned)(
            params, *written.sequences(), 1.0, problem_B=written.problem_B
        )
    return np.asarray(logprob_BT - written.logprob_BT)[np.asarray(written.mask_BT)]


def sums(tmp_path_factory):
    """64 problems of the embedded task."""
    tokenizer = load_tokenizer(EMBEDDED)
    problems = load_problems(
        "arithmetic:train[:64]", data_dir=tmp_path_factory.mktemp("cache")
    )
    rows = host_prompts(tokenize(problems, tokenizer, max_prompt_length=16))
    prompts = left_pad(jnp.asarray(rows.prompt_NL), jnp.asarray(rows.prompt_length_N))
    return prompts, tokenizer.stop_ids


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "mean", "worst"),
    [(jnp.float32, 1e-6, 5e-5), (jnp.bfloat16, 5e-5, 0.05)],
    ids=["fp32", "bf16"],
)
def test_embedded_model(tmp_path_factory, dtype, mean, worst):
    """Over 10,000 tokens; the issue's target for bf16 is a mean of 1e-3 and .1."""
    prompts, stop_ids = sums(tmp_path_factory)
    delta = apart(
        EMBEDDED, prompts, dtype=dtype, group=10, length=40, stop_ids=stop_ids
    )
    show("embedded", dtype, delta)
    assert delta.size > 10_000
    assert np.abs(delta).mean() < mean and np.abs(delta).max() < worst


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "mean", "worst"),
    [
        pytest.param(jnp.float32, 2e-6, 1e-4, marks=pytest.mark.soak),
        (jnp.bfloat16, 1e-3, 0.1),
    ],
    ids=["fp32", "bf16"],
)
def test_babyllama(shared, dtype, mean, worst):
    """The largest trained model at hand, 20,480 tokens after its begin token."""
    prompts = np.full((32, 8), 0, np.int32), np.full((32, 8), -1, np.int32)
    prompts[0][:, -1], prompts[1][:, -1] = 1, 0
    folder = shared / "models/babyllama"
    delta = apart(folder, prompts, dtype=dtype, group=10, length=64, stop_ids=(2,))
    show("babyllama", dtype, delta)
    assert delta.size > 10_000
    assert np.abs(delta).mean() < mean and np.abs(delta).max() < worst


def show(name, dtype, delta):
    size, ratio = np.abs(delta), np.exp([delta.min(), delta.max()])
    print(
        f"\n| {name} | {jnp.dtype(dtype).name} | {delta.size:,} | {size.mean():.1e} "
        f"| {size.max():.1e} | {ratio[0]:.3f}–{ratio[1]:.3f} |"
    )
