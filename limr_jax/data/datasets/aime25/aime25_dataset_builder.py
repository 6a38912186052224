"""TFDS builder: AIME 2025."""

from limr_jax.data.datasets import builder


class Builder(builder.PublicBuilder):
    """AIME 2025."""
