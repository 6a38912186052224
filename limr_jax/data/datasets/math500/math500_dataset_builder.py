"""TFDS builder: 500 problems of MATH's test set."""

from limr_jax.data.datasets import builder


class Builder(builder.PublicBuilder):
    """500 problems of MATH's test set."""
