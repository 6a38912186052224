"""Qwen2.5-Math-1.5B on a v5litepod-16 (16 chips, 4 hosts): LIMR by PPO with online LIM.

    python launch/tpu.py --config configs/v5e_16.py
    python launch/tpu.py --config configs/v5e_16.py --compile_only

The latter: at most 10.10 of 15.75 GiB a chip (generate; update 8.44); 1,024 full-length
rollouts fit at a time, and 256 slots are 32 waves. A bound, not a measurement, every
response at its longest: a step takes at least 1,084 s, 168 steps 51 hours.

    seconds at least    compute   memory   interconnect
    update                  276      409            100
    generate                 28      441              0
    reference, values        70      234             34

It took 246 s, 263 s of processor time and 3.8 GiB of memory beside other work. Other
meshes were not compiled.
Measured on a v5e-16: nothing yet.
"""

from configs import limr_tpu


def get_config(argument: str = ""):
    """PPO with a critic, 1,024 prompts x 8; arguments as in limr_tpu.py."""
    c = limr_tpu.get_config(argument, "Qwen2.5-Math-1.5B")
    c.slice.type = "v5litepod-16"
    c.mesh.fsdp = 16
    c.mesh.tensor = 1
    c.rollout.slots = 256
    c.micro_batch_rows = 32
    return c
