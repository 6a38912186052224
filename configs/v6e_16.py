"""Qwen2.5-Math-7B on a v6e-16 (16 chips, 4 hosts): LIMR by PPO with online LIM.

    python launch/tpu.py --config configs/v6e_16.py
    python launch/tpu.py --config configs/v6e_16.py --compile_only

The latter, 2026-11-30: at most 28.10 of 31.25 GiB a chip (generate; update 25.42); 832
slots are 10 waves, and at most 1,120 full-length rollouts fit at a time. A bound, not a
measurement, every response at its longest: a step takes at least 763 s, 168 steps 36
hours. A decode step of simulated lengths moves 1.28 times the weights and live cache.

    seconds at least    compute   memory   interconnect
    update                  256      431            133
    generate                 28      208             20
    reference, values        67      124             60

On 16 x 1 chips 256 slots did not fit on 2026-11-21 (32.53 GiB). The report took 544 s
beside other work, 850 s of processor time. A row of the 4 x 4 chips, over which tensor
goes, is on two hosts: hosts 0 and 2 grade all rollouts.

Measured on a v6e-16: nothing yet.
"""

from configs import limr_tpu

REMEDIES = limr_tpu.remedies()


def get_config(argument: str = ""):
    """PPO with a critic, 1,024 prompts x 8; arguments as in limr_tpu.py."""
    c = limr_tpu.get_config(argument)
    c.slice.type = "v6e-16"
    c.mesh.fsdp = 4
    c.mesh.tensor = 4
    c.rollout.slots = 832
    c.micro_batch_rows = 16
    return c
