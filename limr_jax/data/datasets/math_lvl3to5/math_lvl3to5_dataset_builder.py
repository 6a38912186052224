"""TFDS builder: MATH, levels 3 to 5, as LIMR selected it."""

from limr_jax.data.datasets import builder


class Builder(builder.PublicBuilder):
    """MATH, levels 3 to 5, as LIMR selected it."""
