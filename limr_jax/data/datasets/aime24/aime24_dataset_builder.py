"""TFDS builder: AIME 2024."""

from limr_jax.data.datasets import builder


class Builder(builder.PublicBuilder):
    """AIME 2024."""
