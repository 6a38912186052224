"""TFDS builder: Undergraduate science and mathematics."""

from limr_jax.data.datasets import builder


class Builder(builder.PublicBuilder):
    """Undergraduate science and mathematics."""
