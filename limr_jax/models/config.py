"""What a model is, and how programs compute with it."""

import dataclasses
import math
from typing import Any


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


# The projections of a layer that may have adapters.
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class Lora:
    """Adapters beside the kernels W of a layer: y = x·W + scale · (x·A)·B."""

    rank: int  # r, the columns of A and the rows of B
    alpha: float
    targets: tuple[str, ...] = TARGETS  # the projections that have them
    scaling: str = "plain"  # scale = α/r; or "rs", α/√r (arXiv:2312.03732)

    @property
    def scale(self) -> float:
        """The factor of what the adapters give."""
        return self.alpha / (
            math.sqrt(self.rank) if self.scaling == "rs" else self.rank
        )


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
    # A TPU's kernels where they fit (models/attention/), else XLA's own attention.
    attention_kernel: bool = True
    # Those of them that were wrong when this run began (attention/kernel_check.py).
    # They are no part of what a model is, nor of the text that identities keep of it.
    refused_kernels: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    logit_softcap: float | None = None
    # Adapters beside the kernels, which no checkpoint's config has. Not in the text
    # that identities keep of a model (`evaluation.benchmarks` says them beside it).
    lora: Lora | None = dataclasses.field(default=None, repr=False)

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

    @property
    def base(self) -> "ModelConfig":
        """The model without adapters."""
        return dataclasses.replace(self, lora=None)

    def lora_of(self, projection: str) -> Lora | None:
        """The adapters of one of a layer's `TARGETS`; None: it has none."""
        has_them = self.lora is not None and projection in self.lora.targets
        return self.lora if has_them else None

    def projection_shape(self, projection: str) -> tuple[int, int]:
        """The numbers that one of `TARGETS` reads and gives for a token."""
        D, F, C = self.width, self.mlp_width, self.head_dim
        return {
            "q": (D, self.heads * C),
            "k": (D, self.kv_heads * C),
            "v": (D, self.kv_heads * C),
            "o": (self.heads * C, D),
            "gate": (D, F),
            "up": (D, F),
            "down": (F, D),
        }[projection]

    def takes(self, kernel: str) -> bool:
        """Whether attention is to be by this kernel ("splash", "ragged") if it fits."""
        return self.attention_kernel and kernel not in self.refused_kernels

    def window_of(self, kind: str) -> int | None:
        """Columns that this kind of attention sees at most; None is all."""
        return self.window if kind == "sliding" else None

    @property
    def groups(self) -> int:
        """Whole repetitions of the pattern; the layers left over are the tail."""
        return self.layers // len(self.pattern)

    @property
    def tail(self) -> tuple[str, ...]:
        """The kinds of attention of the layers that fill no whole group, in order."""
        # The 26 layers of Gemma 3 1B are 4 groups of 6 and a tail of 2.
        return self.pattern[: self.layers % len(self.pattern)]


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How programs compute with the model; hashable, so that jit can take it static."""

    model: ModelConfig
    dtype: Any  # of activations, and of the copy of the parameters that is read
    remat: bool = False  # the backward pass computes a layer's inside anew
