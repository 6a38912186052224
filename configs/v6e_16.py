"""Qwen2.5-Math-7B on a v6e-16 (16 chips, 4 hosts): LIMR by PPO with online LIM.

    python launch/tpu.py --config configs/v6e_16.py
    python launch/tpu.py --config configs/v6e_16.py --compile_only

The latter: at most 28.00 of 31.25 GiB a chip (generate; update 27.49); 736 full-length
rollouts fit at a time, and 512 slots are 16 waves. A bound, not a measurement, every
response at its longest: a step takes at least 728 s, 168 steps 34 hours. A decode step
of simulated lengths moves 1.18 times the weights and live cache.

    seconds at least    compute   memory   interconnect
    update                  256      337             96
    generate                 27      299             10
    reference, values        67       92             35

Mesh, by --config.mesh.fsdp, mesh.tensor and rollout.slots:

    fsdp x tensor  slots  GiB a chip              a step  update  generate  the others
    4 x 4            512  28.00 (generate)        728 s     337       299          92
    4 x 4            256  27.49 (update)          837 s     337       408          92
    16 x 1           256  36.84 (generate): does not fit

The report took 265 s, 508 s of processor time and 4.6 GiB of memory. A row of the 4 x 4
chips, over which tensor goes, is on two hosts: hosts 0 and 2 grade all rollouts.
Measured on a v6e-16: nothing yet.
"""

from configs import limr_tpu


def get_config(argument: str = ""):
    """PPO with a critic, 1,024 prompts x 8; arguments as in limr_tpu.py."""
    c = limr_tpu.get_config(argument)
    c.slice.type = "v6e-16"
    c.mesh.fsdp = 4
    c.mesh.tensor = 4
    c.rollout.slots = 512
    c.micro_batch_rows = 16
    return c
