"""TFDS builder: ProofNet, miniF2F and IMO-ProofBench."""

from limr_jax.data.datasets import builder


class Builder(builder.PublicBuilder):
    """ProofNet, miniF2F and IMO-ProofBench."""
