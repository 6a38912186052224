"""Data-efficient reinforcement learning of language-model reasoning, in JAX."""

__version__ = "0.3.0"
