"""TFDS builder: AMC 12 of 2023."""

from limr_jax.data.datasets import builder


class Builder(builder.PublicBuilder):
    """AMC 12 of 2023."""
