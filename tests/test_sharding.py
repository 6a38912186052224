"""The mesh, and the table of how each parameter lies on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from limr_jax.errors import InputError
from limr_jax.learner.optimizer import make_optimizer
from limr_jax.models import transformer
from limr_jax.models.presets import PRESETS
from limr_jax.sharding import (
    BATCH,
    constrain,
    device_count,
    make_mesh,
    on_each,
    param_rows,
    param_shardings,
    platform,
    row_shards,
    shards,
)

ADAM = {
    "learning_rate": 1.0,
    "warmup_steps": 0,
    "decay_steps": 0,
    "decay_to": 0.1,
    "b1": 0.9,
    "b2": 0.99,
    "epsilon": 1e-8,
    "weight_decay": 0.1,
    "clip_norm": 1.0,
}


def shapes_of(config):
    init = functools.partial(transformer.init_params, config)
    return jax.eval_shape(init, jax.random.key(0))


def specs(mesh, tree):
    return jax.tree.map(lambda sharding: sharding.spec, param_shardings(mesh, tree))


def test_mesh():
    mesh = make_mesh(2, 2, 2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert make_mesh(1, -1, 2).shape["fsdp"] == 4
    assert make_mesh(1, 1, 1, jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    "axes, message",
    [
        ((1, 1, 4), "8 devices"),
        ((3, -1, 1), "8 devices"),
        ((16, -1, 1), "8 devices"),
        ((-1, -1, 1), "one of them may be -1"),
        ((0, 8, 1), "1 or more"),
    ],
)
def test_meshes_that_do_not_fit(axes, message):
    with pytest.raises(InputError, match=message):
        make_mesh(*axes)


def test_table_by_hand():
    """Qwen2.5-7B: 28 heads, 4 kv heads, stacked in one position."""
    mesh = make_mesh(1, 2, 4)
    spec = specs(mesh, shapes_of(PRESETS["qwen2.5-7b"]))
    layer = spec["blocks"]["0"]
    assert layer["attention"]["q"]["kernel"] == PartitionSpec(
        None, "fsdp", "tensor", None
    )
    assert layer["attention"]["k"]["bias"] == PartitionSpec(None, "tensor", None)
    assert layer["attention"]["o"]["kernel"] == PartitionSpec(
        None, "tensor", None, "fsdp"
    )
    assert layer["mlp"]["down"]["kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert layer["mlp_norm"]["scale"] == PartitionSpec(None, None)
    assert spec["embedder"]["embedding"] == PartitionSpec("tensor", "fsdp")
    assert spec["head"]["kernel"] == PartitionSpec("fsdp", "tensor")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_row_for_each_parameter(name):
    shapes = shapes_of(PRESETS[name])
    param_shardings(make_mesh(1, 8, 1), shapes)
    param_shardings(make_mesh(2, 2, 2), shapes)


def test_what_the_tensor_axis_does_not_divide():
    """kv heads and an odd vocabulary are replicated; query heads are refused."""
    mesh = make_mesh(1, 2, 4)
    small = {
        "attention": {
            "q": {"kernel": jnp.zeros((1, 8, 4, 2))},
            "k": {"kernel": jnp.zeros((1, 8, 2, 2))},
        }
    }
    tree = {"embedder": {"embedding": jnp.zeros((105, 8))}, "blocks": {"0": small}}
    spec = specs(mesh, tree)
    k = spec["blocks"]["0"]["attention"]["k"]["kernel"]
    assert k == PartitionSpec(None, "fsdp", None, None)
    assert spec["embedder"]["embedding"] == PartitionSpec(None, "fsdp")
    with pytest.raises(InputError, match="tensor=4 does not divide the 14 heads"):
        param_shardings(mesh, shapes_of(PRESETS["qwen2.5-0.5b"]))


def test_decay_and_dtype_by_hand():
    """Kernels and embeddings decay; norms and the value head stay fp32."""
    rows = param_rows(shapes_of(PRESETS["qwen2.5-7b"]))
    layer = rows["blocks"]["0"]
    kernel, bias = layer["attention"]["q"]["kernel"], layer["attention"]["q"]["bias"]
    scale, embedding = layer["mlp_norm"]["scale"], rows["embedder"]["embedding"]
    flags = [(row.decay, row.fp32) for row in (kernel, bias, scale, embedding)]
    assert flags == [(True, False), (False, False), (False, True), (True, False)]
    head = param_rows({"value_head": {"kernel": jnp.zeros(8)}})["value_head"]["kernel"]
    assert (head.decay, head.fp32) == (True, True)


@pytest.mark.parametrize("name", PRESETS)
def test_the_name_says_what_the_row_does(name):
    def check(path, row):
        last = path[-1].key
        assert row.decay == (last in ("kernel", "embedding"))
        assert row.fp32 == (last == "scale")

    rows = param_rows(shapes_of(PRESETS[name]))
    jax.tree_util.tree_map_with_path(check, rows)


def test_a_name_without_a_row_is_an_error():
    mesh = make_mesh(1, 8, 1)
    with pytest.raises(KeyError, match="no row"):
        param_shardings(mesh, {"blocks": {"0": {"attention": {"gate": jnp.ones(8)}}}})
    with pytest.raises(KeyError, match="no row"):
        param_shardings(mesh, {"adapter": {"kernel": jnp.ones((8, 8))}})
    unknown = {"blocks": {"0": {"mlp": {"router": {"kernel": jnp.ones((1, 8, 4))}}}}}
    for refusing in (
        param_rows,
        lambda params: transformer.compute_params(params, jnp.bfloat16),
        make_optimizer(**ADAM).init,
    ):
        with pytest.raises(KeyError, match="blocks/0/mlp/router/kernel.*no row"):
            refusing(unknown)
    with pytest.raises(KeyError, match="shape"):
        param_shardings(mesh, {"final_norm": {"scale": jnp.ones((8, 8))}})


def test_optimiser_states_lie_as_their_parameters():
    params = {
        "final_norm": {"scale": jnp.ones(8)},
        "head": {"kernel": jnp.ones((8, 8))},
    }
    spec = specs(make_mesh(1, 8, 1), {"mu": params, "count": jnp.int32(0)})
    assert spec["mu"]["head"]["kernel"] == PartitionSpec("fsdp", None)
    assert spec["count"] == PartitionSpec()


def test_constrain():
    x = jnp.ones((8, 6))
    assert constrain(x, BATCH[0], None) is x  # no mesh, nothing to say
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        rows = jax.jit(lambda x: constrain(x, BATCH[0], "tensor"))(x)
        odd = jax.jit(lambda x: constrain(x, "tensor", BATCH[0]))(x)
    assert rows.addressable_shards[0].data.shape == (2, 3)
    assert odd.addressable_shards[0].data.shape == (4, 6)  # 4 do not divide 6
    np.testing.assert_array_equal(rows, x)


def test_on_each_device_there_is_no_mesh(monkeypatch):
    """What a device computes alone is laid out, and counted, as without a mesh."""
    monkeypatch.setattr(jax, "default_backend", lambda: "elsewhere")
    found = []

    def local(x):
        found.append((device_count(), row_shards(8), shards("tensor"), platform()))
        return constrain(x, BATCH[0], "tensor") + 1

    x = jnp.ones((8, 6))
    with jax.set_mesh(make_mesh(2, 2, 2)):
        assert (device_count(), row_shards(8), shards("tensor")) == (8, 4, 2)
        out = jax.jit(on_each(local, BATCH, BATCH))(x)
    assert found == [(1, 1, 1, "cpu")]
    np.testing.assert_array_equal(out, x + 1)
