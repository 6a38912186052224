"""TFDS builder: NuminaMath 1.5, each row verifiable or not."""

from limr_jax.data.datasets import builder


class Builder(builder.PublicBuilder):
    """NuminaMath 1.5, each row verifiable or not."""
