"""What XLA's text says of a program: loops by their trips, collectives, bytes."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from limr_jax import sharding
from limr_jax.compilation import hlo_cost, slices

pytestmark = pytest.mark.usefixtures("compiled_anew")

TEXT = """
%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b)
}

%inner (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %r = f32[8,16]{1,0} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %t = (s32[], f32[8,16]{1,0}) tuple(%i, %r)
}

%ends (p.1: (s32[], f32[8,16])) -> pred[] {
  %p.1 = (s32[], f32[8,16]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %n = s32[] constant(3)
  ROOT %lt = pred[] compare(%i.1, %n), direction=LT
}

%unknown (p.2: (s32[], f32[8,16])) -> pred[] {
  %p.2 = (s32[], f32[8,16]{1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  ROOT %lt.1 = pred[] compare(%i.2, %i.2), direction=LT
}

%outer (p.3: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p.3 = (s32[], f32[8,16]{1,0}) parameter(0)
  ROOT %w = (s32[], f32[8,16]{1,0}) while(%p.3), condition=%ends, body=%inner
}

%sliced (q: f32[28,8,16], j: s32[]) -> f32[1,8,16] {
  %q = f32[28,8,16]{2,1,0} parameter(0)
  %j = s32[] parameter(1)
  %z = s32[] constant(0)
  ROOT %ds = f32[1,8,16]{2,1,0} dynamic-slice(%q, %j, %z, %z), slice_sizes={1,8,16}
}

ENTRY %main (s: (s32[], f32[8,16]), q.1: f32[28,8,16], j.1: s32[]) -> f32[32,16] {
  %s = (s32[], f32[8,16]{1,0}) parameter(0)
  %q.1 = f32[28,8,16]{2,1,0} parameter(1)
  %j.1 = s32[] parameter(2)
  %w.1 = (s32[], f32[8,16]{1,0}) while(%s), condition=%unknown, body=%outer
  %x.1 = f32[8,16]{1,0} get-tuple-element(%w.1), index=1
  %near = f32[8,16]{1,0:T(8,128)S(1)} copy(%x.1)
  %one = f32[1,8,16]{2,1,0} fusion(%q.1, %j.1), kind=kLoop, calls=%sliced
  ROOT %g = f32[32,16]{1,0} all-gather(%x.1), replica_groups={{0,1,2,3}}, dimensions={0}
}
"""


def test_by_hand():
    """A loop of 3 turns within one that the caller says has 5."""
    cost, size = hlo_cost.cost(TEXT, turns=(5,)), 8 * 16 * 4
    assert cost.collectives == {
        "all-reduce": (15, 15 * 2 * size * 3 / 4),
        "all-gather": (1, size * 3),
    }
    # Read and written by each all-reduce; the copy's result is not in HBM; the fusion
    # reads and writes one layer of 28, and reads its index; the gather reads one
    # part and writes four. A condition's compare reads 8 bytes and writes 1.
    compares = 5 * 9 + 15 * 9
    rest = compares + 4
    assert cost.hbm_bytes == 15 * 2 * size + size + 2 * size + 5 * size + rest
    assert cost.all_bytes - cost.hbm_bytes == size
    assert hlo_cost.cost(TEXT, turns=(10,)).collectives["all-reduce"][0] == 30


def test_the_compilers_own_loops_count_without_sign():
    """A gather that libtpu makes a ring of permutations: its turns are in its text."""
    ring = TEXT.replace("%n = s32[] constant(3)", "%n = u32[]{:T(128)} constant(3)")
    assert hlo_cost.cost(ring, turns=(5,)) == hlo_cost.cost(TEXT, turns=(5,))


@pytest.mark.slow
def test_a_compiled_loop_counts_as_its_unrolled_twin():
    mesh = jax.make_mesh((8,), ("x",))
    rows = NamedSharding(mesh, PartitionSpec("x"))
    shapes = (
        jax.ShapeDtypeStruct((128, 256), jnp.float32, sharding=rows),
        jax.ShapeDtypeStruct((12, 256, 256), jnp.float32),
    )

    def layers(x, weights, unroll):
        def layer(x, weight):
            y = jnp.tanh(x @ weight)
            return y + jax.lax.with_sharding_constraint(
                jnp.sum(y, axis=0)[None], None
            ), None

        return jax.lax.scan(layer, x, weights, unroll=unroll)[0]

    costs = []
    for unroll in (1, 12):
        jitted = jax.jit(layers, static_argnums=2, out_shardings=rows)
        with jax.set_mesh(mesh):
            text = jitted.lower(*shapes, unroll).compile().as_text()
        costs.append(hlo_cost.cost(text))
        assert (" while(" in text) == (unroll == 1)
    looped, unrolled = costs
    assert looped.collectives["all-reduce"][1] == unrolled.collectives["all-reduce"][1]
    assert looped.all_bytes == pytest.approx(unrolled.all_bytes, rel=0.1)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,4},{1,5}}", 2),
        ("replica_groups=[4,4]<=[4,4]T(1,0)", 4),
        ("replica_groups=mesh['a'=4,'b'=2,'c'=2] {'a','c'}", 8),
    ],
)
def test_the_size_of_a_group(groups, size):
    text = f"""
ENTRY %main (x: f32[64]) -> f32[64] {{
  %x = f32[64]{{0}} parameter(0)
  ROOT %r = f32[64]{{0}} all-reduce(%x), channel_id=1, {groups}, to_apply=%sum
}}
"""
    sent = hlo_cost.cost(text).collectives["all-reduce"][1]
    assert sent == 2 * 64 * 4 * (size - 1) / size


@pytest.mark.parametrize(
    ("kind", "result"),
    [("all-gather", 64 * 4), ("reduce-scatter", 64 / 4), ("all-reduce", 64)],
)
def test_what_a_collective_reads_and_writes(kind, result):
    """By hand, in numbers of 4 bytes, over groups of 4 and without a fusion."""
    text = f"""
ENTRY %main (x: f32[64]) -> f32[{result:.0f}] {{
  %x = f32[64]{{0}} parameter(0)
  ROOT %r = f32[{result:.0f}]{{0}} {kind}(%x), replica_groups={{{{0,1,2,3}}}}
}}
"""
    assert hlo_cost.cost(text).hbm_bytes == 4 * (64 + result)


SWITCH = """
%narrow (x: f32[8]) -> f32[2] {
  %x = f32[8]{0} parameter(0)
  ROOT %s = f32[2]{0} slice(%x), slice={[0:2]}
}

%half (y: f32[8]) -> f32[2] {
  %y = f32[8]{0} parameter(0)
  %c = f32[8]{0} copy(%y)
  ROOT %s.1 = f32[2]{0} slice(%c), slice={[0:2]}
}

%all (z: f32[8]) -> f32[2] {
  %z = f32[8]{0} parameter(0)
  %d = f32[8]{0} copy(%z)
  %e = f32[8]{0} copy(%d)
  ROOT %s.2 = f32[2]{0} slice(%e), slice={[0:2]}
}

ENTRY %main (i: s32[], x.1: f32[8]) -> f32[2] {
  %i = s32[] parameter(0)
  %x.1 = f32[8]{0} parameter(1)
  ROOT %r = f32[2]{0} conditional(%i, %x.1, %x.1, %x.1), BRANCHES
}
"""


def test_a_conditional_counts_by_the_shares_of_its_branches():
    """By hand: a slice reads and writes 8 bytes, a copy 32."""
    text = SWITCH.replace("BRANCHES", "branch_computations={%narrow, %half, %all}")
    assert hlo_cost.cost(text).hbm_bytes == 16
    assert (
        hlo_cost.cost(text, shares=(0.5, 0.5)).hbm_bytes == 16
    )  # of two, not of three
    given = hlo_cost.cost(text, shares=(0.5, 0.25, 0.25))
    assert given.hbm_bytes == 16 + 64 / 4 + 128 / 4


SCATTER = """
%all-reduce-scatter.2 (input: f32[64,16]) -> f32[16,16] {
  %input = f32[64,16]{1,0} parameter(0)
  %all-reduce.5 = f32[64,16]{1,0} all-reduce(%input), replica_groups={{0,1,2,3}}
  %zero = u32[] constant(0)
  ROOT %slice = f32[16,16]{1,0} dynamic-slice(%all-reduce.5, %zero, %zero)
}

%other (input.1: f32[16,16]) -> f32[16,16] {
  %input.1 = f32[16,16]{1,0} parameter(0)
  ROOT %all-reduce.6 = f32[16,16]{1,0} all-reduce(%input.1), replica_groups={{0,1}}
}

ENTRY %main (x: f32[64,16]) -> f32[16,16] {
  %x = f32[64,16]{1,0} parameter(0)
  %part = f32[16,16]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.2
  ROOT %r = f32[16,16]{1,0} fusion(%part), kind=kCustom, calls=%other
}
"""


def test_a_fusion_counts_its_collectives():
    """By hand: a reduce-scatter as libtpu writes it, and an all-reduce of its part."""
    cost, size = hlo_cost.cost(SCATTER), 64 * 16 * 4
    assert cost.collectives == {
        "reduce-scatter": (1, size * 3 / 4),
        "all-reduce": (1, 2 * size / 4 / 2),
    }
    assert cost.hbm_bytes == size + size / 4 + 2 * size / 4  # at the boundaries


FUSED = """
%same (p: f32[32,8]) -> f32[32,8] {
  %p = f32[32,8]{1,0} parameter(0)
  ROOT %b = f32[32,8]{1,0} bitcast(%p)
}

%product (x: f32[4,32], w: f32[32,8]) -> f32[4,8] {
  %x = f32[4,32]{1,0} parameter(0)
  %w = f32[32,8]{1,0} parameter(1)
  %v = f32[32,8]{1,0} fusion(%w), kind=kLoop, calls=%same
  ROOT %c = f32[4,8]{1,0} convolution(%x, %v), dim_labels=bf_io->bf
}

%noted (all: f32[64,8], i: s32[4], y: f32[4,8]) -> f32[64,8] {
  %all = f32[64,8]{1,0} parameter(0)
  %i = s32[4]{0} parameter(1)
  %y = f32[4,8]{1,0} parameter(2)
  ROOT %s = f32[64,8]{1,0} scatter(%all, %i, %y), to_apply=%sum
}

ENTRY %main (x.1: f32[4,32], w.1: f32[32,8], a: f32[64,8], i.1: s32[4]) -> f32[64,8] {
  %x.1 = f32[4,32]{1,0} parameter(0)
  %w.1 = f32[32,8]{1,0} parameter(1)
  %a = f32[64,8]{1,0} parameter(2)
  %i.1 = s32[4]{0} parameter(3)
  %y.1 = f32[4,8]{1,0} fusion(%x.1, %w.1), kind=kOutput, calls=%product
  ROOT %r = f32[64,8]{1,0} fusion(%a, %i.1, %y.1), kind=kCustom, calls=%noted
}
"""


def test_a_weight_that_a_fusion_passes_on_is_read_and_a_scatter_is_in_place():
    """By hand, in numbers of 4 bytes."""
    product, noted = 4 * 32 + 32 * 8 + 4 * 8, 4 + 4 * 8 + 4 * 8
    assert hlo_cost.cost(FUSED).hbm_bytes == 4 * (product + noted)


# A layer of a stack of int8, laid out otherwise and cast on the way.
RELAID = """
%laid (x.1: s8[28,8,16]) -> s8[28,8,16] {
  %x.1 = s8[28,8,16]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %copy.1 = s8[28,8,16]{2,1,0:T(8,128)(4,1)} copy(%x.1)
}

%cast (q: s8[28,8,16], j: s32[]) -> bf16[1,8,16] {
  %q = s8[28,8,16]{2,1,0:T(32,128)(4,1)} parameter(0)
  %j = s32[] parameter(1)
  %z = s32[] constant(0)
  %whole = s8[28,8,16]{2,1,0} fusion(%q), kind=kLoop, calls=%laid
  %as = bf16[28,8,16]{2,1,0} convert(%whole)
  ROOT %ds = bf16[1,8,16]{2,1,0} dynamic-slice(%as, %j, %z, %z)
}

ENTRY %main (a: s8[28,8,16], b: s32[]) -> bf16[1,8,16] {
  %a = s8[28,8,16]{2,1,0} parameter(0)
  %b = s32[] parameter(1)
  ROOT %f = bf16[1,8,16]{2,1,0} fusion(%a, %b), kind=kLoop, calls=%cast
}
"""


def test_a_stack_that_a_fusion_lays_out_anew_is_read_where_it_is_sliced():
    """By hand: a layer and a number are read, and the layer is written as bf16."""
    assert hlo_cost.cost(RELAID).hbm_bytes == 8 * 16 + 4 + 2 * 8 * 16


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs libtpu, the TPU's compiler: pip install -e '.[tpu]'",
)
def test_a_reduce_scatter_for_a_v4_32():
    """16 MiB on each chip, summed and dealt out over 4: each sends three quarters."""
    mesh = sharding.make_mesh(1, 4, 4, devices=slices.devices("v4-32"))
    at = NamedSharding(mesh, PartitionSpec(None, "tensor"))
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.float32, sharding=at)

    def scatter(x):
        return jax.lax.psum_scatter(jnp.tanh(x), "fsdp", tiled=True)

    specs = PartitionSpec(None, "tensor"), PartitionSpec("fsdp", "tensor")
    with jax.set_mesh(mesh):
        scattered = sharding.on_each(scatter, specs[:1], specs[1])
        text = jax.jit(scattered).lower(x).compile().as_text()
    count, sent = hlo_cost.cost(text).collectives["reduce-scatter"]
    # libtpu fills up a little, and passes on what that moves.
    assert count == 1 and sent == pytest.approx(4096 * 1024 * 4 * 3 / 4, rel=0.01)
