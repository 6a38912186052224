"""Qwen2.5-Math-7B on a v5p-16 (8 chips, 2 hosts): LIMR by PPO with online LIM.

    python launch/tpu.py --config configs/v5p_16.py
    python launch/tpu.py --config configs/v5p_16.py --compile_only

The latter: at most 57.91 of 95.74 GiB a chip (update; generate 56.14); 1,952 full-
length rollouts fit at a time, and 512 slots are 16 waves. A bound, not a measurement,
every response at its longest: a step takes at least 1,907 s, 168 steps 89 hours.

    seconds at least    compute   memory   interconnect
    update                1,023      219             58
    generate                112      618              4
    reference, values       266       50             22

It took 364 s, 301 s of processor time and 4.0 GiB of memory beside other work. Other
meshes were not compiled.
Measured on a v5p-16: nothing yet.
"""

from configs import limr_tpu


def get_config(argument: str = ""):
    """PPO with a critic, 1,024 prompts x 8; arguments as in limr_tpu.py."""
    c = limr_tpu.get_config(argument)
    c.slice.type = "v5p-16"
    c.mesh.fsdp = 4
    c.mesh.tensor = 2
    c.rollout.slots = 512
    c.micro_batch_rows = 32
    return c
