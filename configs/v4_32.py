"""Qwen2.5-Math-7B on a v4-32 (16 chips, 4 hosts): LIMR by PPO with online LIM.

    python launch/tpu.py --config configs/v4_32.py
    python launch/tpu.py --config configs/v4_32.py --compile_only      # needs no TPU

The latter: at most 28.11 of 30.75 GiB a chip (generate; update 21.64); 832 slots are 10
waves, and at most 1,088 full-length rollouts fit at a time. A bound, not a measurement,
every response at its longest: a step takes at least 1,344 s, 168 steps 63 hours. A
decode step of simulated lengths moves 1.23 times the weights and live cache.

    seconds at least    compute   memory   interconnect
    update                  854      375            133
    generate                 93      267             14
    reference, values       222       93             46

Meshes compared, by --config.mesh.fsdp, mesh.tensor and rollout.slots:

    fsdp x tensor  slots  GiB a chip              a step  update  generate  the others
    4 x 4            512  24.24 (generate)      1,396 s     854       320         222
    4 x 4            832  28.11 (generate)      1,344 s     854       267         222
    4 x 4          1,024  30.15 (generate)      1,322 s     854       246         222
    8 x 2            384  26.70 (generate)      1,655 s     854       579         222

The report took 142 s, 276 s of processor time and 5.4 GiB of memory.
Measured on a v4-32: nothing yet.
"""

from configs import limr_tpu

REMEDIES = limr_tpu.remedies()


def get_config(argument: str = ""):
    """PPO with a critic, 1,024 prompts x 8; arguments as in limr_tpu.py."""
    c = limr_tpu.get_config(argument)
    c.slice.type = "v4-32"
    c.mesh.fsdp = 4
    c.mesh.tensor = 4
    c.rollout.slots = 832
    c.micro_batch_rows = 16
    return c
