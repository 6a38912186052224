"""What the models' tests have in common."""

import pytest

from limr_jax.models import transformer


@pytest.fixture(autouse=True)
def decode_scans_few_layers(monkeypatch):
    """Decode scans over 9 layers on a CPU as well, as it does elsewhere."""
    monkeypatch.setattr(transformer, "_UNROLLED_ON_CPU", transformer._UNROLLED)
