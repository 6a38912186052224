"""Adapters beside a frozen base: what they compute, their gradients, PEFT's files."""

import dataclasses
import functools
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_policy import (
    GEMMA,
    QWEN,
    drift,
    fp32,
    leaves_of,
    logits_of,
    quick,
    random_params,
)

from limr_jax.compilation import flops
from limr_jax.errors import InputError
from limr_jax.models import lora, peft, transformer
from limr_jax.models.config import TARGETS, Lora
from limr_jax.sharding import make_mesh, param_rows, param_shardings

# Two layers in a period, and a tail.
TAILED = dataclasses.replace(GEMMA, layers=3)
families = pytest.mark.parametrize(
    "config",
    [
        pytest.param(QWEN, id="qwen"),
        # The third has all of it.
        pytest.param(GEMMA, id="gemma", marks=pytest.mark.soak),
        pytest.param(TAILED, id="gemma-with-a-tail"),
    ],
)
ADAPTED = Lora(rank=3, alpha=6.0)


def with_lora(config, **changes):
    return dataclasses.replace(config, lora=dataclasses.replace(ADAPTED, **changes))


@functools.cache
def first_params(config):
    return quick(partial(transformer.init_params, config))(jax.random.key(1))


@families
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_at_first_the_policy_is_the_base(config, dtype):
    """Bit for bit; and parameters without adapters are the base under either config."""
    adapted = with_lora(config)
    params, alone = first_params(adapted), first_params(config)
    base, adapters = lora.split(params)
    jax.tree.map(np.testing.assert_array_equal, base, alone)
    for name, x in leaves_of(adapters).items():
        assert np.any(x) == name.endswith("lora_a"), name
    how = {"config": adapted, "dtype": dtype}
    ours = quick(partial(logits_of, **how))(params)
    theirs = quick(partial(logits_of, config=config, dtype=dtype))(alone)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(quick(partial(logits_of, **how))(base), theirs)


@families
@pytest.mark.parametrize("scaling", ["plain", "rs"])
def test_merged_is_unmerged(config, scaling):
    config = with_lora(config, scaling=scaling)
    params = random_params(config)
    ours = quick(partial(logits_of, config=config))(params)
    merged = lora.merge(params, config.lora)
    assert not lora.has_adapters(merged)
    theirs = quick(partial(logits_of, config=config.base))(merged)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    base = quick(partial(logits_of, config=config.base))(lora.split(params)[0])
    assert np.abs(ours - base).max() > 0.1  # the adapters do something


def test_the_scale():
    assert Lora(4, 16.0).scale == 4
    assert Lora(4, 16.0, scaling="rs").scale == 8


@families
def test_gradients_are_those_of_the_merged_kernels(config):
    """dA = s·dW·Bᵀ and dB = s·Aᵀ·dW, by JAX's derivative of W + s·A·B."""
    config = with_lora(config)
    base, adapters = lora.split(random_params(config))
    weight_BTV = np.random.default_rng(2).standard_normal((2, 7, 40))

    def ours(adapters):
        logits_BTV = logits_of(lora.join(base, adapters), config=config)
        return jnp.sum(weight_BTV * logits_BTV)

    def theirs(adapters):
        merged = lora.merge(lora.join(base, adapters), config.lora)
        return jnp.sum(weight_BTV * logits_of(merged, config=config.base))

    ours, theirs = (quick(jax.grad(f))(adapters) for f in (ours, theirs))
    assert len(jax.tree.leaves(ours)) == 14 * (len(config.pattern) + len(config.tail))
    for (name, x), y in zip(
        leaves_of(ours).items(), jax.tree.leaves(theirs), strict=True
    ):
        largest = np.abs(y).max()
        assert largest > 0, name
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * largest, err_msg=name)


def test_a_frozen_kernel_costs_no_gradient():
    """Of forward, gradient of x and of W (1 : 1 : 1) the last is not in the program."""
    wide = dataclasses.replace(QWEN, width=64, head_dim=16, mlp_width=192)

    def products(config):
        shapes = jax.eval_shape(
            partial(transformer.init_params, config), jax.random.key(0)
        )
        base, learned = lora.split(shapes)

        def loss(learned, base):
            return jnp.sum(logits_of(lora.join(base, learned), config=config))

        return flops.flops(jax.make_jaxpr(jax.grad(loss))(learned, base))

    ratio = products(with_lora(wide, rank=1)) / products(wide)
    assert 2 / 3 < ratio < 0.75


@families
def test_rollouts_log_probabilities_are_the_learners(config):
    """Prefill and decode over base and adapters, against one forward pass."""
    config = with_lora(config)
    found = drift(random_params(config), fp32(config))
    assert len(found) > 20
    assert found.max() < 1e-5


def test_split_and_join_copy_nothing():
    params = random_params(with_lora(GEMMA, targets=("k", "down")))
    base, adapters = lora.split(params)
    names = {name.rpartition("/")[0] for name, _ in leaves_of(adapters).items()}
    assert names == {
        f"blocks/{i}/{part}" for i in (0, 1) for part in ("attention/k", "mlp/down")
    }
    joined = lora.join(base, adapters)
    assert jax.tree.structure(joined) == jax.tree.structure(params)
    pairs = zip(jax.tree.leaves(joined), jax.tree.leaves(params), strict=True)
    assert all(one is other for one, other in pairs)
    # Without adapters all is learned.
    assert lora.split(base) == (None, base)
    assert lora.join(None, base) is base


def test_every_adapter_has_a_row():
    params = random_params(with_lora(QWEN))
    _, adapters = lora.split(params)
    rows = jax.tree.leaves(param_rows(adapters))  # a ParamRow is a leaf
    assert len(rows) == 14
    assert all(row.decay and not row.fp32 for row in rows)
    at = param_shardings(make_mesh(2, 2, 2), adapters)["blocks"]["0"]
    spec = {name: tuple(x.spec) for name, x in leaves_of(at).items()}
    # A lies as the kernel's first axes do, B as its last.
    assert spec["attention/q/lora_a"] == (None, "fsdp", None)
    assert spec["attention/q/lora_b"] == (None, None, "tensor", None)
    assert spec["attention/o/lora_a"] == (None, "tensor", None, None)
    assert spec["attention/o/lora_b"] == (None, None, "fsdp")
    assert spec["mlp/down/lora_a"] == (None, "tensor", None)
    assert spec["mlp/up/lora_b"] == (None, None, "tensor")


def test_a_rank_above_a_dimension():
    """16 = width, 8 · 2 = all channels of the kv heads."""
    lora.check_rank(with_lora(QWEN, rank=16))
    with pytest.raises(InputError, match=r"rank=17 is larger than 16.* of q's kernel"):
        lora.check_rank(with_lora(QWEN, rank=17))
    small = dataclasses.replace(QWEN, kv_heads=1)
    with pytest.raises(InputError, match=r"rank=9 is larger than 8.* of k's kernel"):
        lora.check_rank(with_lora(small, rank=9))
    lora.check_rank(with_lora(small, rank=9, targets=("q", "o", "up")))


@pytest.mark.parametrize(
    "text, said",
    [("q,w", "'w' is none"), ("", "'' is none"), ("q, q", "one is named twice")],
)
def test_targets_that_are_none(text, said):
    with pytest.raises(InputError, match=said):
        lora.parse_targets(text)
    assert lora.parse_targets("down, q") == ("q", "down")


# --- PEFT's files -----------------------------------------------------------------


def one_device():
    return make_mesh(1, 1, 1, jax.devices()[:1])


def saved(folder, config, base="0123"):
    """PEFT's directory of random adapters, and these."""
    adapters = lora.split(random_params(config))[1]
    peft.save(folder, adapters, config, base_name="their/base", base=base)
    return adapters


@families
@pytest.mark.parametrize("targets", [TARGETS, ("v", "gate")], ids=["all", "two"])
def test_peft_directories_are_written_and_read_back(config, targets, tmp_path):
    config = with_lora(config, targets=targets)
    adapters = saved(tmp_path / "out", config)
    peft.check_fits(tmp_path / "out", config, base="0123")
    again = peft.load(tmp_path / "out", config, make_mesh(1, 4, 2))
    jax.tree.map(np.testing.assert_array_equal, again, adapters)


def test_as_peft_names_and_lays_them(tmp_path):
    config = with_lora(QWEN)
    adapters = saved(tmp_path / "out", config)
    tensors = load_file(tmp_path / "out" / peft.WEIGHTS)
    stem = "base_model.model.model.layers.1.self_attn.{}_proj.lora_{}.weight"
    own = adapters["blocks"]["0"]["attention"]
    q_b, o_a = tensors[stem.format("q", "B")], tensors[stem.format("o", "A")]
    assert q_b.shape == (4 * 8, 3) and o_a.shape == (3, 4 * 8)
    np.testing.assert_array_equal(q_b, own["q"]["lora_b"][1].reshape(3, 32).T)
    np.testing.assert_array_equal(o_a, own["o"]["lora_a"][1].reshape(32, 3).T)
    assert len(tensors) == 2 * 2 * 7
    written = json.loads((tmp_path / "out" / peft.CONFIG).read_text())
    assert written["r"] == 3 and written["lora_alpha"] == 6
    assert written["base_model_name_or_path"] == "their/base"
    assert "down_proj" in written["target_modules"]


def change_config(folder, **fields):
    path = folder / peft.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(folder, change):
    tensors = load_file(folder / peft.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / peft.WEIGHTS)


A_TENSOR = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    "spoil, said",
    [
        (partial(change_config, r=4), "model.lora.rank=3, .* have '?4"),
        (partial(change_config, lora_alpha=7), "model.lora.alpha=6.0, .* have '?7"),
        (partial(change_config, use_rslora=True), "model.lora.scaling=plain, .*rs"),
        (partial(change_config, target_modules=["q_proj"]), "model.lora.targets=.*q"),
        (partial(change_config, peft_type="IA3"), "peft_type is '?IA3"),
        (partial(change_config, use_dora=True), "use_dora='?True"),
        (partial(change_config, init_lora_weights="pissa"), "weights=pissa .* another"),
        # Adapters that wait for a text, and those of a release to come.
        (
            partial(change_config, alora_invocation_tokens=[1]),
            r"tokens=\[1\] is not am",
        ),
        (partial(change_config, use_tomorrows=True), "use_tomorrows=True is not among"),
        (lambda folder: (folder / peft.WEIGHTS).unlink(), "has no adapter_model"),
        (
            partial(change_tensors, change=lambda x: x.pop(A_TENSOR)),
            r"there is nothing, and the model of model.init has a place for \[3, 16\]",
        ),
        (
            partial(
                change_tensors, change=lambda x: x.update({A_TENSOR: np.ones((3, 9))})
            ),
            r"there is \[3, 9\], and .* a place for \[3, 16\]",
        ),
        (
            partial(change_tensors, change=lambda x: x.update(extra=np.ones(1))),
            r"extra'? there is \[1\], and .* a place for nothing",
        ),
    ],
    ids=[
        *("rank", "alpha", "scaling", "targets", "kind", "dora"),
        *("another base", "on a text", "unknown", "no file"),
        *("missing", "shape", "surplus"),
    ],
)
def test_adapters_of_something_else_are_refused(spoil, said, tmp_path):
    config = with_lora(QWEN)
    saved(tmp_path / "out", config)
    spoil(tmp_path / "out")
    with pytest.raises(InputError, match=said) as error:
        peft.check_fits(tmp_path / "out", config)
    assert "\n" not in str(error.value)


def test_what_peft_says_of_plain_adapters_is_read(tmp_path):
    """Fields of its release 0.21 that change nothing."""
    config = with_lora(QWEN)
    saved(tmp_path / "out", config)
    change_config(
        tmp_path / "out",
        init_lora_weights="gaussian",
        lora_dropout=0.05,
        megatron_core="megatron.core",
        qalora_group_size=16,
        use_qalora=False,
        loftq_config={},
        trainable_token_indices=None,
    )
    peft.check_fits(tmp_path / "out", config)


def test_adapters_of_another_base_or_with_no_number(tmp_path):
    config = with_lora(QWEN)
    saved(tmp_path / "out", config)
    with pytest.raises(InputError, match="of the digest '?0123.* is 4567"):
        peft.check_fits(tmp_path / "out", config, base="4567")
    # PEFT's own directories say nothing of it, and a random base has no digest.
    peft.check_fits(tmp_path / "out", config)
    (tmp_path / "out" / "limr_jax.json").unlink()
    peft.check_fits(tmp_path / "out", config, base="4567")
    change_tensors(tmp_path / "out", lambda x: x[A_TENSOR].fill(np.nan))
    with pytest.raises(InputError, match="holds nan or inf"):
        peft.load(tmp_path / "out", config, one_device())
