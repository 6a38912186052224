"""TPU chips and slices: what the compile report measures programs against.

Peak bf16 FLOP/s, HBM bandwidth and interconnect of a chip are those of the pages
https://docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e, as they were in 2026
(older ones have 1,640 GB/s for v6e's HBM). The interconnect is half of what they call
bidirectional. v4's page has none: its chip has six links, each of what the page's
bisection bandwidth, 24 TB/s, leaves to the 512 links that halve a 16 x 16 x 16 torus;
so counted, v5e and v6e have what their pages say. The HBM that a program may use is
what libtpu's compiler says when one does not fit.
"""

import dataclasses
import math
import os

from limr_jax.errors import InputError, choose
from limr_jax.platform import has_libtpu


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip's published peaks."""

    flops: float  # FLOP/s in bf16
    hbm_bandwidth: float  # bytes/s
    ici_bandwidth: float  # bytes/s, all links of the chip, one direction
    hbm_gib: float  # GiB that a program may use


@dataclasses.dataclass(frozen=True)
class Slice:
    """What gcloud calls by one name."""

    chip: str
    topology: str  # as libtpu names it
    host: tuple[int, int, int] = (2, 2, 1)  # chips of a host along each axis


CHIPS = {
    "v4": Chip(flops=275e12, hbm_bandwidth=1200e9, ici_bandwidth=281e9, hbm_gib=30.75),
    "v5e": Chip(flops=197e12, hbm_bandwidth=819e9, ici_bandwidth=200e9, hbm_gib=15.75),
    "v5p": Chip(flops=459e12, hbm_bandwidth=2765e9, ici_bandwidth=600e9, hbm_gib=95.74),
    "v6e": Chip(flops=918e12, hbm_bandwidth=1600e9, ici_bandwidth=400e9, hbm_gib=31.25),
}

# v4 and v5p count cores, two a chip; v5e and v6e count chips.
SLICES = {
    "v4-8": Slice("v4", "2x2x1"),
    "v4-16": Slice("v4", "2x2x2"),
    "v4-32": Slice("v4", "2x2x4"),
    "v4-64": Slice("v4", "2x4x4"),
    "v5litepod-1": Slice("v5e", "1x1", host=(1, 1, 1)),
    "v5litepod-4": Slice("v5e", "2x2"),
    "v5litepod-8": Slice("v5e", "2x4", host=(2, 4, 1)),
    "v5litepod-16": Slice("v5e", "4x4"),
    "v5p-8": Slice("v5p", "2x2x1"),
    "v5p-16": Slice("v5p", "2x2x2"),
    "v6e-1": Slice("v6e", "1x1", host=(1, 1, 1)),
    "v6e-4": Slice("v6e", "2x2"),
    "v6e-8": Slice("v6e", "2x4", host=(2, 4, 1)),
    "v6e-16": Slice("v6e", "4x4"),
}


# How JAX names a chip (`device_kind`) → its name here.
_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def chip_of(device) -> str | None:
    """Which of CHIPS a device is; None: none of them."""
    return _KINDS.get(device.device_kind)


def refuse_other(slice_type: str, devices) -> None:
    """InputError where these devices are not those of a slice of this type."""
    spec = choose(SLICES, slice_type, "slice.type")
    chip, kind = chip_of(devices[0]), devices[0].device_kind
    count = math.prod(map(int, spec.topology.split("x")))
    if chip != spec.chip or len(devices) != count:
        here = f"are {len(devices)} devices" if len(devices) > 1 else "is one device"
        raise InputError(
            f"slice.type={slice_type} is {count} {spec.chip} chips, but here "
            f"{here}, {kind}: run it on such a slice (on all of its "
            "hosts: launch/slice.sh check NAME), or give the slice.type of this one "
            "(--config.slice.type= for none)"
        )
    # A process that sees some of a host's chips may not begin at 0.
    sides = [1 + max(side) - min(side) for side in zip(*(x.coords for x in devices))]
    # Which way a slice lies does not matter, nor sides of 1.
    here, there = (
        sorted(side for side in lengths if side > 1)
        for lengths in (sides, map(int, spec.topology.split("x")))
    )
    if here != there:
        raise InputError(
            f"slice.type={slice_type} is {spec.topology} chips, but these lie as "
            f"{'x'.join(map(str, sides))}; give the slice.type of this slice"
        )


def devices(slice_type: str):
    """The devices of a slice that is not there, for compiling (needs libtpu).

    To be called before anything else has asked for a TPU: the compiler reads the
    environment once. InputError without libtpu.
    """
    tpu_slice = choose(SLICES, slice_type, "slice.type")
    if not has_libtpu():
        raise InputError(
            f"slice.type={slice_type}: compiling for a TPU needs its compiler, libtpu, "
            "which is not installed: pip install -e '.[tpu]'"
        )
    # There is no TPU machine whose metadata could be asked for.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # there is no chip to lock
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", slice_type)
    from jax.experimental import topologies

    options = {"chips_per_host_bounds": tpu_slice.host}
    # megacore: the two cores of a chip are one device.
    if tpu_slice.chip == "v4":
        options |= {
            "chip_config_name": "megacore",
            "num_slices": 1,
            "wrap": (False, False, False),
        }
    return topologies.get_topology_desc(
        platform="tpu",
        topology_name=f"{tpu_slice.chip}:{tpu_slice.topology}",
        **options,
    ).devices
