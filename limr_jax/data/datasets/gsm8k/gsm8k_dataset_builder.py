"""TFDS builder: Grade-school word problems."""

from limr_jax.data.datasets import builder


class Builder(builder.PublicBuilder):
    """Grade-school word problems."""
