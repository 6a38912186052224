"""TFDS builder: OlympiadBench, mathematics in English with answers."""

from limr_jax.data.datasets import builder


class Builder(builder.PublicBuilder):
    """OlympiadBench, mathematics in English with answers."""
