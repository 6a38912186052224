"""A bucket on localhost, for the tests of a file."""

import pytest
from fake_gcs import environment, serving

from limr_jax.storage import gcs, lease


@pytest.fixture(scope="module")
def cloud():
    """TensorStore reads its address once a process; so one server serves a file."""
    with pytest.MonkeyPatch.context() as patch, serving("bucket") as (cloud, address):
        for name, value in environment(address).items():
            patch.setenv(name, value)
        yield cloud


@pytest.fixture
def held(cloud):
    """An empty bucket, whose leases end with the test."""
    cloud.buckets["bucket"] = bucket = type(cloud.buckets["bucket"])()
    gcs._granted.clear()
    yield bucket
    for path in [*lease._held]:
        lease.release(path)
