"""One layer of the Transformer, and the configuration that says which.

Axes: B rows, T tokens, S cache columns, D width, F feed-forward, H heads, K kv heads,
G = H / K, C channels per head.
"""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from limr_jax.chunks import by_chunks, chunk_size
from limr_jax.sharding import ROWS, constrain

PART = 160  # columns of a part of `attend_back`, at least


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions: the base, and how the frequencies are scaled.

    `factor` alone divides every frequency (linear). With `original_length` it is
    Llama 3's: wavelengths above original_length / low_frequency are divided by factor,
    those below original_length / high_frequency kept, a linear blend between.
    """

    base: float = 10_000.0
    factor: float = 1.0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    original_length: int | None = None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a checkpoint's architecture is; hashable, so that jit can take it static."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    max_length: int = 4096  # positions the checkpoint was trained for
    pattern: tuple[str, ...] = ("full",)  # repeats: "full" or "sliding" attention
    window: int | None = None  # positions that sliding attention sees, itself included
    rope: Rope = Rope()
    local_rope: Rope | None = None  # of the sliding layers, where it is another
    norm_eps: float = 1e-6
    activation: str = "silu"  # or "gelu_tanh", "gelu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each query and key head
    tied: bool = True  # the embedding is the head too
    norm_plus_one: bool = False  # norms multiply by 1 + scale
    out_norms: bool = False  # a norm after attention and MLP also
    scale_embedding: bool = False  # by sqrt(width)
    attention_scale: float | None = None  # None: head_dim ** -0.5
    attention_softcap: float | None = None
    attention_kernel: bool = True  # a TPU's, where it fits (splash.py); else XLA's own
    logit_softcap: float | None = None

    def __post_init__(self):
        if not 1 <= len(self.pattern) <= self.layers:
            raise ValueError(f"pattern {self.pattern} for {self.layers} layers")
        if not set(self.pattern) <= {"full", "sliding"}:
            raise ValueError(f"pattern {self.pattern}: not full or sliding")
        if "sliding" in self.pattern and not self.window:
            raise ValueError("sliding attention needs a window")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads over {self.kv_heads} kv heads")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is not even: pairs are turned")

    def window_of(self, kind: str) -> int | None:
        """Columns that this kind of attention sees at most; None is all."""
        return self.window if kind == "sliding" else None

    @property
    def groups(self) -> int:
        """Whole repetitions of the pattern; the layers left over are the tail."""
        return self.layers // len(self.pattern)

    @property
    def tail(self) -> tuple[str, ...]:
        return self.pattern[: self.layers % len(self.pattern)]


class RMSNorm(nnx.Module):
    def __init__(self, size: int, config: ModelConfig):
        self.eps, self.plus_one = config.norm_eps, config.norm_plus_one
        init = jnp.zeros if self.plus_one else jnp.ones
        self.scale = nnx.Param(init((size,)))

    def __call__(self, x):
        x_fp32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x_fp32), axis=-1, keepdims=True)
        scale = self.scale[...].astype(jnp.float32) + self.plus_one
        scale = scale.reshape((1,) * (x.ndim - 1) + (-1,))
        return (x_fp32 * jax.lax.rsqrt(mean_square + self.eps) * scale).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def contract(x, kernel, count: int):
    """`jnp.tensordot(x, kernel, count)`, for operands of one dtype.

    The derivative is the same; it is written out because JAX's own makes the kernel's
    gradient transposed, and XLA:CPU then writes the activations out transposed first.
    """
    # Not einsum: it may swap the operands, and XLA:CPU then copies the result.
    return jnp.tensordot(x, kernel, count)


def _contract_forward(x, kernel, count):
    return contract(x, kernel, count), (x, kernel)


def _contract_backward(count, kept, gradient):
    x, kernel = kept
    rows, columns = x.ndim - count, kernel.ndim - count
    y_axes, kernel_axes = range(rows, rows + columns), range(count, kernel.ndim)
    return (
        jnp.tensordot(gradient, kernel, (tuple(y_axes), tuple(kernel_axes))),
        jnp.tensordot(x, gradient, (tuple(range(rows)),) * 2),
    )


contract.defvjp(_contract_forward, _contract_backward)


class Projection(nnx.Module):
    """The last axes of x against the first of the kernel; a bias if `bias_shape`."""

    def __init__(self, shape, *, rngs, contracted=1, bias_shape=None):
        self.contracted = contracted
        normal = nnx.initializers.normal(0.02)
        self.kernel = nnx.Param(normal(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(bias_shape)) if bias_shape else None

    def __call__(self, x):
        y = contract(x, self.kernel[...].astype(x.dtype), self.contracted)
        if self.bias is None:
            return y
        return y + jnp.expand_dims(self.bias[...].astype(x.dtype), (0, 1))


class Attention(nnx.Module):
    def __init__(self, config: ModelConfig, *, rngs):
        D, H, K, C = config.width, config.heads, config.kv_heads, config.head_dim
        self.config = config

        def heads(count):
            bias_shape = (count, C) if config.qkv_bias else None
            return Projection((D, count, C), bias_shape=bias_shape, rngs=rngs)

        self.q, self.k, self.v = heads(H), heads(K), heads(K)
        bias_shape = (D,) if config.o_bias else None
        self.o = Projection((H, C, D), contracted=2, bias_shape=bias_shape, rngs=rngs)
        self.q_norm = RMSNorm(C, config) if config.qk_norm else None
        self.k_norm = RMSNorm(C, config) if config.qk_norm else None

    def __call__(self, x_BTD, turn, look):
        """`look(q_BTHC, k_BKCT, v_BKTC) → out_BTHC, kept`: what is attended to."""
        q_BTHC, k_BTKC, v_BTKC = self.q(x_BTD), self.k(x_BTD), self.v(x_BTD)
        if self.q_norm is not None:
            q_BTHC, k_BTKC = self.q_norm(q_BTHC), self.k_norm(k_BTKC)
        q_BTHC, k_BTKC = _rotate(q_BTHC, turn), _rotate(k_BTKC, turn)
        # Each as it is contracted: XLA:CPU is 4 times slower along the last axis.
        k_BKCT, v_BKTC = k_BTKC.transpose(0, 2, 3, 1), v_BTKC.swapaxes(1, 2)
        out_BTHC, kept = look(q_BTHC, k_BKCT, v_BKTC)
        return self.o(out_BTHC), kept


class MLP(nnx.Module):
    def __init__(self, config: ModelConfig, *, rngs):
        D, F = config.width, config.mlp_width
        self.activation = config.activation

        def linear(rows, columns):
            bias_shape = (columns,) if config.mlp_bias else None
            return Projection((rows, columns), bias_shape=bias_shape, rngs=rngs)

        self.gate, self.up, self.down = linear(D, F), linear(D, F), linear(F, D)

    def __call__(self, x_BTD):
        activate = {
            "silu": jax.nn.silu,
            "gelu": functools.partial(jax.nn.gelu, approximate=False),
            "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
        }[self.activation]
        return self.down(activate(self.gate(x_BTD)) * self.up(x_BTD))


class Block(nnx.Module):
    """One layer; which attention it has is in the turn and the `look` it is given."""

    def __init__(self, config: ModelConfig, *, rngs):
        def norm(there=True):
            return RMSNorm(config.width, config) if there else None

        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention_out_norm = norm(config.out_norms)
        self.mlp_out_norm = norm(config.out_norms)
        self.attention = Attention(config, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, x_BTD, turn, look):
        y_BTD, kept = self.attention(self.attention_norm(x_BTD), turn, look)
        if self.attention_out_norm is not None:
            y_BTD = self.attention_out_norm(y_BTD)
        x_BTD = x_BTD + y_BTD
        y_BTD = self.mlp(self.mlp_norm(x_BTD))
        if self.mlp_out_norm is not None:
            y_BTD = self.mlp_out_norm(y_BTD)
        return constrain(x_BTD + y_BTD, ROWS, None, None), kept


def _rotate(x_BTHC, turn):
    """Rotary embedding by halves, in fp32; `turn` is from `rotation`."""
    cos, sin = (x_BTC[:, :, None] for x_BTC in turn)
    first, second = jnp.split(x_BTHC.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(rotated, axis=-1).astype(x_BTHC.dtype)


def attend_back(q_BTHC, k_BKCT, v_BKTC, mask_BTT, config: ModelConfig):
    """`attend` where nobody sees a later column: most of those are not even read.

    In as many parts as pay on a CPU, forward and backward in ms: 4 rows of 320 columns
    in one part 13.7, two 11.7, four 11.7; 2 rows of 576 31.5, 18.7, three 15.8, four
    14.5. Each is compiled. Where a kernel of the backend's fits, this is not called.
    """
    T = q_BTHC.shape[1]
    parts = max(1, min(T // PART, 4))
    ends = [T * i // parts for i in range(parts + 1)]

    def part(start, end):
        return attend(
            q_BTHC[:, start:end],
            k_BKCT[..., :end],
            v_BKTC[:, :, :end],
            mask_BTT[:, start:end, :end],
            config,
        )

    return jnp.concatenate([*itertools.starmap(part, itertools.pairwise(ends))], axis=1)


def attend(q_BTHC, k_BKCS, v_BKSC, mask_BTS, config: ModelConfig):
    """Softmax attention, by chunks of queries where the scores are many."""
    B, T, H, _ = q_BTHC.shape
    return by_chunks(
        lambda q_BQHC, mask_BQS: _attend_at_once(
            q_BQHC, k_BKCS, v_BKSC, mask_BQS, config
        ),
        q_BTHC,
        mask_BTS,
        size=chunk_size(T, B * H * k_BKCS.shape[3]),
    )


def _attend_at_once(q_BTHC, k_BKCS, v_BKSC, mask_BTS, config: ModelConfig):
    """Softmax attention in fp32, each kv head read by its G query heads in place."""
    B, T, H, C = q_BTHC.shape
    K, G = config.kv_heads, H // config.kv_heads
    q_BKGTC = q_BTHC.reshape(B, T, K, G, C).transpose(0, 2, 3, 1, 4)
    scale = config.attention_scale or C**-0.5
    score = scale * jax.lax.dot_general(
        q_BKGTC,
        k_BKCS,
        (((4,), (2,)), ((0, 1), (0, 1))),
        preferred_element_type=jnp.float32,
    )
    if config.attention_softcap:
        cap = config.attention_softcap
        score = cap * jnp.tanh(score / cap)
    # Finite, so that a padding query, which may see nothing, gives no NaN.
    score = jnp.where(mask_BTS[:, None, None], score, jnp.finfo(jnp.float32).min)
    weight_BKGTS = jax.nn.softmax(score, axis=-1).astype(v_BKSC.dtype)
    out_BKGTC = jax.lax.dot_general(
        weight_BKGTS, v_BKSC, (((4,), (2,)), ((0, 1), (0, 1)))
    )
    return out_BKGTC.transpose(0, 3, 1, 2, 4).reshape(B, T, H, C)


def rotation(position_BT, rope: Rope, C: int):
    """fp32 (cos, sin) of each position's angle for each channel pair, [B, T, C / 2]."""
    exponent = np.arange(0, C, 2, dtype=np.float32) / np.float32(C)
    frequency = (1.0 / np.float32(rope.base) ** exponent).astype(np.float32)
    slow = frequency / rope.factor
    if rope.original_length is not None:
        turns = rope.original_length * frequency / (2 * math.pi)
        blend = (turns - rope.low_frequency) / (
            rope.high_frequency - rope.low_frequency
        )
        blend = np.clip(blend, 0.0, 1.0)
        slow = (1 - blend) * slow + blend * frequency
    slow = jnp.asarray(slow, jnp.float32)[None, None]
    angle_BTC = position_BT[..., None].astype(jnp.float32) * slow
    # Kept apart, or XLA:CPU fuses the cosines into every layer and head.
    return jax.lax.optimization_barrier((jnp.cos(angle_BTC), jnp.sin(angle_BTC)))


def seen_mask(query_BT, key_BS, window: int | None):
    """Who sees whom, from positions alone; -1 is padding or an empty column."""
    query_BT1, key_B1S = query_BT[:, :, None], key_BS[:, None]
    seen = (key_B1S >= 0) & (key_B1S <= query_BT1)
    return seen if window is None else seen & (query_BT1 - key_B1S < window)
