"""One layer of the Transformer; a `ModelConfig` says which.

Axes: B rows, T tokens, S cache columns, D width, F feed-forward, H heads, K kv heads,
C channels per head, R rank of the adapters.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from limr_jax.models import cpu
from limr_jax.models.attention.dense import rotate
from limr_jax.models.config import Lora, ModelConfig
from limr_jax.models.int8 import quantise
from limr_jax.sharding import ROWS, constrain


class RMSNorm(nnx.Module):
    """x over the root of its mean square, along the last axis, times a learned scale.

    size: of that axis.
    """

    def __init__(self, size: int, config: ModelConfig):
        self.eps, self.plus_one = config.norm_eps, config.norm_plus_one
        # Gemma's checkpoints hold scale − 1, so there 0 is the identity.
        init = jnp.zeros if self.plus_one else jnp.ones
        self.scale = nnx.Param(init((size,)))

    def __call__(self, x, dtype=None):
        """x, normalised over its last axis, in `dtype` (None: in x's own)."""
        # In fp32 whatever x is: a mean of squares in bf16 has 8 bits.
        x_fp32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x_fp32), axis=-1, keepdims=True)
        scale = self.scale[...].astype(jnp.float32) + self.plus_one
        # Ranks are made equal: the tests run with jax_numpy_rank_promotion=raise.
        scale = scale.reshape((1,) * (x.ndim - 1) + (-1,))
        normalised = x_fp32 * jax.lax.rsqrt(mean_square + self.eps) * scale
        return normalised.astype(dtype or x.dtype)


class Projection(nnx.Module):
    """The last axes of x against the first of the kernel; a bias if `bias_shape`.

    lora: the low-rank adapters beside the kernel, y = x·W + scale · (x·A)·B, A normal
    and B zero at first; None: there are none.
    int8: whether the kernel is int8, with an fp32 scale of each output channel.
    """

    def __init__(
        self,
        shape,
        *,
        rngs,
        contracted=1,
        bias_shape=None,
        lora: Lora | None = None,
        int8=False,
    ):
        self.contracted = contracted
        normal = nnx.initializers.normal(0.02)
        kernel, scale = normal(rngs.params(), shape, jnp.float32), None
        if int8:
            kernel, scale = quantise(kernel, axes=tuple(range(contracted)))
        self.kernel = nnx.Param(kernel)
        self.kernel_scale = None if scale is None else nnx.Param(scale)
        self.bias = nnx.Param(jnp.zeros(bias_shape)) if bias_shape else None
        if lora is None:
            self.lora_a = self.lora_b = None
        else:
            self.scale = lora.scale
            a_shape = (*shape[:contracted], lora.rank)
            b_shape = (lora.rank, *shape[contracted:])
            # Numbers of x·A are as large as those of x. A stream of random numbers of
            # its own: the kernels are what they are without adapters.
            normal = nnx.initializers.normal(math.prod(shape[:contracted]) ** -0.5)
            self.lora_a = nnx.Param(normal(rngs.lora(), a_shape, jnp.float32))
            self.lora_b = nnx.Param(jnp.zeros(b_shape))

    def __call__(self, x, dtype=None):
        """The product of operands in x's dtype, as `dtype` (None: x's)."""
        # The learner has fp32 parameters, the rollout the smaller copy: cast to x's
        # dtype for the product, both multiply the same digits. int8's 127 steps are
        # whole numbers in bf16, too.
        kernel = self.kernel[...]
        if self.kernel_scale is not None:
            kernel, x = cpu.cast_late(kernel, x)
        if self.lora_a is None and self.kernel_scale is None:
            y = cpu.contract(x, kernel, count=self.contracted, dtype=dtype)
        else:
            # In fp32, so that the sum is rounded once: adapters move y by less than a
            # bf16 step of it for long.
            y = cpu.contract(x, kernel, count=self.contracted, dtype=jnp.float32)
            if self.kernel_scale is not None:
                # Rounded before adapters or the residual stream are added: fused, some
                # programs would round once and others twice (`cpu.unfused`).
                y = cpu.unfused(y * jnp.expand_dims(self.kernel_scale[...], (0, 1)))
            if self.lora_a is not None:
                y = y + self.scale * self._adapted(x)
            y = y.astype(dtype or x.dtype)
        # By this name transformer.py may keep it for the backward pass.
        y = cpu.named(y, "product")
        if self.bias is None:
            return y
        bias = self.bias[...].astype(x.dtype)  # the rollout's copy has no more digits
        return y + jnp.expand_dims(bias, (0, 1))

    def _adapted(self, x):
        """(x·A)·B, fp32; its operands are of x's dtype, as the kernel's."""
        x_BTR = cpu.contract(x, self.lora_a[...], self.contracted)
        return cpu.contract(x_BTR, self.lora_b[...], count=1, dtype=jnp.float32)


class Attention(nnx.Module):
    """Projections to query, key and value heads and back; who sees whom is a caller's.

    With norms of the heads and biases where the config has them.
    """

    def __init__(self, config: ModelConfig, *, rngs, int8=False):
        D, H, K, C = config.width, config.heads, config.kv_heads, config.head_dim
        self.config = config

        def heads(name, count):
            return Projection(
                (D, count, C),
                bias_shape=(count, C) if config.qkv_bias else None,
                lora=config.lora_of(name),
                rngs=rngs,
                int8=int8,
            )

        self.q, self.k, self.v = heads("q", H), heads("k", K), heads("v", K)
        self.o = Projection(
            (H, C, D),
            contracted=2,
            bias_shape=(D,) if config.o_bias else None,
            lora=config.lora_of("o"),
            rngs=rngs,
            int8=int8,
        )
        self.q_norm = RMSNorm(C, config) if config.qk_norm else None
        self.k_norm = RMSNorm(C, config) if config.qk_norm else None

    def __call__(self, x_BTD, rotation, attend):
        """The heads' output, fp32, and what `attend` keeps of keys and values.

        rotation: (cos, sin) of the positions, as `dense.rotation` has them.
        attend: `(q_BTHC, k_BKCT, v_BKTC) → out_BTHC, kept`.
        """
        q_BTHC, k_BTKC, v_BTKC = self.q(x_BTD), self.k(x_BTD), self.v(x_BTD)
        # Qwen3 and Gemma 3 norm each head before it is rotated.
        if self.q_norm is not None:
            q_BTHC, k_BTKC = self.q_norm(q_BTHC), self.k_norm(k_BTKC)
        q_BTHC, k_BTKC = rotate(q_BTHC, rotation), rotate(k_BTKC, rotation)
        # Each as it is contracted: XLA:CPU is 4 times slower along the last axis.
        k_BKCT, v_BKTC = k_BTKC.transpose(0, 2, 3, 1), v_BTKC.swapaxes(1, 2)
        out_BTHC, kept = attend(q_BTHC, k_BKCT, v_BKTC)
        # fp32, for it is added to the residual stream (`Block`).
        return self.o(out_BTHC, jnp.float32), kept


class MLP(nnx.Module):
    """A gated feed-forward layer: down(activation(gate(x)) · up(x)), D → F → D."""

    def __init__(self, config: ModelConfig, *, rngs, int8=False):
        D, F = config.width, config.mlp_width
        self.activation = config.activation

        def linear(name, rows, columns):
            return Projection(
                (rows, columns),
                bias_shape=(columns,) if config.mlp_bias else None,
                lora=config.lora_of(name),
                rngs=rngs,
                int8=int8,
            )

        self.gate, self.up = linear("gate", D, F), linear("up", D, F)
        self.down = linear("down", F, D)

    def __call__(self, x_BTD):
        """The feed-forward layer's output, fp32; its products are of x's dtype."""
        activate = {
            "silu": jax.nn.silu,
            # PyTorch's gelu is the exact one, by erf; JAX's own default is not.
            "gelu": functools.partial(jax.nn.gelu, approximate=False),
            "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
        }[self.activation]
        return self.down(activate(self.gate(x_BTD)) * self.up(x_BTD), jnp.float32)


class Block(nnx.Module):
    """One layer; which attention it has is in its arguments `rotation` and `attend`.

    The residual stream x_BTD is fp32 and what is added to it is not rounded; products
    read operands of `dtype`. So a sum that differs in its last bit, as between rollout
    and learner, does not become a bf16 step of the stream.
    """

    def __init__(self, config: ModelConfig, *, rngs, int8=False):
        def norm(there=True):
            return RMSNorm(config.width, config) if there else None

        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention_out_norm = norm(config.out_norms)
        self.mlp_out_norm = norm(config.out_norms)
        self.attention = Attention(config, rngs=rngs, int8=int8)
        self.mlp = MLP(config, rngs=rngs, int8=int8)

    def __call__(self, x_BTD, rotation, attend, dtype):
        """The residual stream after the layer, fp32 [B, T, D], and what `attend` keeps.

        rotation, attend: as `Attention` takes them. dtype: of the operands of products.
        """
        y_BTD = self.attention_norm(x_BTD, dtype)
        y_BTD, kept = self.attention(y_BTD, rotation, attend)
        if self.attention_out_norm is not None:
            y_BTD = self.attention_out_norm(y_BTD)
        x_BTD = x_BTD + y_BTD
        y_BTD = self.mlp(self.mlp_norm(x_BTD, dtype))
        if self.mlp_out_norm is not None:
            y_BTD = self.mlp_out_norm(y_BTD)
        return constrain(x_BTD + y_BTD, ROWS, None, None), kept
