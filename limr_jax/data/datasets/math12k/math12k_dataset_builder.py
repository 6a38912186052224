"""TFDS builder: MATH without MATH500."""

from limr_jax.data.datasets import builder


class Builder(builder.PublicBuilder):
    """MATH without MATH500."""
