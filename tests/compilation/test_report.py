"""libtpu's compiler on what a TPU slice runs: configs/v4_32.py with few, short rows.

As a user starts it. What breaks compiling for a TPU fails here; that the slices'
configs fit at full size is what their docstrings record, and for v4_32 a soak test.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from tiny_policy import QWEN, decode_greedily
from tiny_run import ROOT

from limr_jax.compilation import hlo_cost, slices
from limr_jax.compilation.compile import chip_bytes
from limr_jax.errors import InputError
from limr_jax.models import lora, presets, transformer
from limr_jax.models.config import ComputeConfig, Lora
from limr_jax.multihost.arrays import gather_rows
from limr_jax.rollout import generate as rollout
from limr_jax.rollout.sampling import Sampling
from limr_jax.rollout.types import GenerateConfig
from limr_jax.sharding import BATCH, REPLICATED, make_mesh, param_shardings

pytest.importorskip("libtpu", reason="libtpu is not installed: '.[test]' brings it")

pytestmark = pytest.mark.usefixtures("compiled_anew")

SHORT = {
    "model.layers": 9,  # the fewest that decode scans over
    "model.vocab_size": 8192,
    "prompts_per_step": 32,
    "minibatches_per_step": 2,
    "rollout.max_prompt_length": 256,  # the least that splash is for
    "rollout.max_response_length": 512,
    "rollout.slots": 32,
    "slice.problems": 64,
}


def compile_only(workdir, config: str, short=SHORT, **fields) -> tuple[int, str, dict]:
    """Exit code, what it said, and the report."""
    fields = {name.replace("__", "."): x for name, x in fields.items()}
    overrides = [f"--config.{name}={x}" for name, x in (short | fields).items()]
    flags = ["--config", f"configs/{config}", "--workdir", str(workdir)]
    ended = subprocess.run(
        [sys.executable, "launch/tpu.py", "--compile_only", *flags, *overrides],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert not ended.stderr, ended.stderr[-4000:]
    made = json.loads(workdir.with_name(f"{workdir.name}.compile.json").read_text())
    return ended.returncode, ended.stdout, made


@pytest.mark.slow
def test_every_program_of_a_v4_32(tmp_path):
    # Narrow beside its cache, of which a copy would show; of decode's loops two.
    narrow = {
        "model__mlp_width": 2048,
        "rollout__slots": 128,
        "rollout__compactions": 1,
    }
    code, said, made = compile_only(tmp_path / "run", "v4_32.py", **narrow)
    assert code == 0 and made["fits"], said
    assert "fits: at most" in said and "bound, not a measurement" in said
    assert (made["slice"], made["chips"]) == ("v4-32", 16)
    programs = {row["name"]: row for row in made["programs"]}
    assert programs.keys() == {
        *("copy", "init", "draw", "generate", "observe"),
        *("reference", "values", "update"),
    }
    for row in programs.values():
        assert not row["error"] and 0 < row["total_gib"] < 30.75
    kernels = {name: " ".join(row["kernels"]) for name, row in programs.items()}
    assert all(
        "splash" in kernels[name]
        for name in ("generate", "reference", "values", "update")
    )
    assert "ragged_decode" in kernels["generate"]
    # A decode step moves little more than it must: no copy of the cache, above all.
    # (Less, where weights of so few layers stay on the chip.)
    assert 0.5 < made["decode"]["compiled"] <= 1.3
    assert made["compiling"]["peak_gib"] < 6
    # The update of both models: forward, again for remat, and backward twice as much;
    # beside it the reference and the critic go forward once each.
    forward = programs["reference"]["flops"] + programs["values"]["flops"]
    assert 3.5 < programs["update"]["flops"] / forward < 4.5
    assert programs["update"]["collectives"]


@pytest.mark.slow
def test_what_does_not_fit_ends_with_1_and_three_settings(tmp_path):
    """7B's widths on 4 chips, all of an update's rows at once."""
    code, said, made = compile_only(
        tmp_path / "run",
        "v4_32.py:critic=no,kl=0",
        slice__type="v4-8",
        mesh__fsdp=2,
        mesh__tensor=2,
        model__layers=28,
        minibatches_per_step=1,
        micro_batch_rows=256,
        rollout__compactions=0,  # one loop of decode to compile
    )
    assert code == 1 and not made["fits"], said
    names = {row["name"] for row in made["programs"]}
    assert not names & {"copy", "reference", "values"}  # no KL, no critic
    over = [row for row in made["programs"] if row["error"]]
    assert "update" in {row["name"] for row in over}
    assert "RESOURCE_EXHAUSTED" in over[-1]["error"]
    freed = [row["frees_gib"] for row in made["advice"]]
    assert len(freed) == 3 and freed == sorted(freed, reverse=True) and freed[-1] > 0
    assert "--config.micro_batch_rows=128 (frees about" in said.splitlines()[-2]


def test_a_digest_takes_a_layer_of_a_stack_at_a_time():
    """Of 7 GiB, which each chip would get twice and more."""
    mesh = make_mesh(1, 4, 4, devices=slices.devices("v4-32"))
    sharding = jax.NamedSharding(mesh, jax.P(None, "fsdp", "tensor"))
    stack = jax.ShapeDtypeStruct((28, 3584, 18944), np.float32, sharding=sharding)
    gather = gather_rows(mesh).lower(stack, 0, count=1).compile()
    needed = gather.memory_analysis()
    assert needed.output_size_in_bytes + needed.temp_size_in_bytes < 2**30


@pytest.mark.soak
@pytest.mark.parametrize("name", ["v4_8", "v5e_16", "v5p_16", "v6e_16"])
def test_every_program_of_another_slice(tmp_path, name):
    code, said, made = compile_only(tmp_path / "run", f"{name}.py")
    assert code == 0 and made["fits"], said
    assert "ragged_decode" in next(
        row["kernels"] for row in made["programs"] if row["name"] == "generate"
    )
    assert 0.5 < made["decode"]["compiled"] <= 1.3


@pytest.mark.soak
def test_v4_32_at_its_full_size(tmp_path):
    """In 5 minutes of two cores and 6 GiB."""
    code, said, made = compile_only(tmp_path / "run", "v4_32.py", short={})
    assert code == 0 and made["fits"], said
    assert 1 < made["decode"]["compiled"] <= 1.3
    assert made["compiling"]["cpu_seconds"] < 600
    assert made["compiling"]["peak_gib"] < 6


def test_decode_reads_int8_and_makes_no_copy_of_the_base():
    """9 layers of Qwen2.5-7B, scanned over; some of it stays on the chip."""
    mesh = make_mesh(4, 1, 1, devices=slices.devices("v4-8"))
    seven_b = presets.PRESETS["qwen2.5-7b"]
    config = dataclasses.replace(seven_b, layers=9, vocab_size=128, lora=Lora(8, 16.0))
    whole = NamedSharding(mesh, REPLICATED)

    def shapes(make):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
            jax.eval_shape(make),
        )

    def make_params():
        params = transformer.init_params(config, jax.random.key(0), int8=True)
        return transformer.compute_params(params, jnp.bfloat16)

    how = {"config": config, "dtype": jnp.bfloat16}
    prefill = partial(transformer.prefill, columns=192, **how)

    write = partial(decode_greedily, first=128, **how)

    with jax.set_mesh(mesh):
        params, prompts = shapes(make_params), np.zeros((8, 128), np.int32)
        cache = shapes(lambda: prefill(make_params(), prompts, prompts)[1])
        token_B, number = shapes(lambda: (jnp.zeros(8, jnp.int32), jnp.int32(0)))
        given = params, token_B, cache, number
        text = jax.jit(write, donate_argnums=2).lower(*given).compile().as_text()
    step, none = (hlo_cost.cost(text, turns=(turn,)).hbm_bytes for turn in (1, 0))
    base = sum(x.size for x in jax.tree.leaves(lora.split(params)[0]))
    weights, columns = (sum(map(chip_bytes, jax.tree.leaves(x))) for x in given[::2])
    assert 0.9 * weights < step - none < weights + columns
    assert weights < 0.51 * 2 * base
    # Of a kernel's stack there is none but in int8.
    stacks = {
        kind for kind, _ in re.findall(r"= (\w+)\[9,(3584,18944|18944,3584)\]", text)
    }
    assert stacks == {"s8"}


@pytest.mark.slow
def test_devices_that_share_no_tensor_generate_alone():
    """The kernel is in the loops of a device by itself, and no collective is."""
    mesh = make_mesh(1, 4, 1, devices=slices.devices("v4-8"))
    config = dataclasses.replace(QWEN, layers=10, head_dim=128)  # scanned over

    def laid_out(x, at):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)

    params = jax.eval_shape(partial(transformer.init_params, config), jax.random.key(0))
    params = jax.tree.map(laid_out, params, param_shardings(mesh, params))
    key = laid_out(jax.eval_shape(jax.random.key, 0), NamedSharding(mesh, REPLICATED))
    prompts = (
        jax.ShapeDtypeStruct(axes, jnp.int32, sharding=NamedSharding(mesh, BATCH))
        for axes in ((8, 128), (8, 128), (8,))
    )
    generate = partial(
        rollout.generate,
        config=GenerateConfig(
            group=4,
            response_length=128,
            slots=16,
            compactions=0,
            stop_ids=(3,),
            pad_id=1,
        ),
        compute=ComputeConfig(config, jnp.bfloat16),
    )
    with jax.set_mesh(mesh):
        given = params, *prompts, key, Sampling()
        text = jax.jit(generate).lower(*given).compile().as_text()
    called, begun = text.split("\nENTRY ")
    assert 'custom_call_target="tpu_custom_call"' in called  # by a loop's body
    assert "all-gather" in begun  # the parameters, once
    assert not re.search(r"all-(gather|reduce|to-all)|collective-permute", called)


def test_a_mesh_that_does_not_lie_along_the_chips():
    """v6e-16 is a torus of 4 x 4; a v4-32 of 2 x 2 x 4 has axes of 8 and of 2."""
    line = "data=1 x fsdp=8 x tensor=2 does not lie along the slice's 4 x 4 x 1 chips"
    v6e = slices.devices("v6e-16")
    with pytest.raises(InputError, match=line):
        make_mesh(1, 8, 2, devices=v6e)
    assert make_mesh(1, 4, 4, devices=v6e).size == 16
    assert make_mesh(1, 8, 2, devices=slices.devices("v4-32")).size == 16
