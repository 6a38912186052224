"""Qwen2.5-Math-1.5B on a v4-8 (4 chips, 1 host): LIMR by PPO with online LIM.

    python launch/tpu.py --config configs/v4_8.py
    python launch/tpu.py --config configs/v4_8.py --compile_only

The latter: at most 29.70 of 30.75 GiB a chip (generate; update 22.09); 160 full-length
rollouts fit at a time, and 128 slots are 64 waves. A bound, not a measurement, every
response at its longest: a step takes at least 2,146 s, 168 steps 100 hours.

    seconds at least    compute   memory   interconnect
    update                  791      355            144
    generate                 89    1,156              0
    reference, values       199       53             28

It took 172 s, 237 s of processor time and 5.0 GiB of memory beside other work. Other
meshes were not compiled.
Measured on a v4-8: nothing yet.
"""

from configs import limr_tpu


def get_config(argument: str = ""):
    """PPO with a critic, 1,024 prompts x 8; arguments as in limr_tpu.py."""
    c = limr_tpu.get_config(argument, "Qwen2.5-Math-1.5B")
    c.slice.type = "v4-8"
    c.mesh.fsdp = 4
    c.mesh.tensor = 1
    c.rollout.slots = 128
    c.micro_batch_rows = 16
    return c
