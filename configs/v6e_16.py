"""Qwen2.5-Math-7B on a v6e-16 (16 chips, 4 hosts): LIMR by PPO with online LIM.

    python launch/tpu.py --config configs/v6e_16.py
    python launch/tpu.py --config configs/v6e_16.py --compile_only

The latter: at most 27.49 of 31.25 GiB a chip (update; generate 25.28); 672 full-length
rollouts fit at a time, and 256 slots are 32 waves. A bound, not a measurement, every
response at its longest: a step takes at least 725 s, 168 steps 34 hours.

    seconds at least    compute   memory   interconnect
    update                  256      311             91
    generate                 27      329             10
    reference, values        67       85             35

It took 415 s, 472 s of processor time and 5.2 GiB of memory beside other work. Other
meshes were not compiled. This is of before the report counted reduce-scatters and the
ring's true share, with 1,640 GB/s of HBM. A row of the 4 x 4 chips, over which tensor
goes, is on two hosts: hosts 0 and 2 grade all rollouts.
Measured on a v6e-16: nothing yet.
"""

from configs import limr_tpu


def get_config(argument: str = ""):
    """PPO with a critic, 1,024 prompts x 8; arguments as in limr_tpu.py."""
    c = limr_tpu.get_config(argument)
    c.slice.type = "v6e-16"
    c.mesh.fsdp = 4
    c.mesh.tensor = 4
    c.rollout.slots = 256
    c.micro_batch_rows = 16
    return c
