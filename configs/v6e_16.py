"""Qwen2.5-Math-7B on a v6e-16 (16 chips, 4 hosts): LIMR by PPO with online LIM.

    python launch/tpu.py --config configs/v6e_16.py
    python launch/tpu.py --config configs/v6e_16.py --compile_only

The latter, of programs whose residual stream was still bf16 (v4_32.py has what fp32
adds): at most 28.10 of 31.25 GiB a chip (generate; update 21.64); 832 slots are 10
waves, and at most 1,120 full-length rollouts fit at a time. A bound, not a measurement,
every response at its longest: a step takes at least 634 s, 168 steps 30 hours. A decode
step of simulated lengths moves 1.27 times the weights and live cache.

    seconds at least    compute   memory   interconnect
    update                  256      337             96
    generate                 28      206             10
    reference, values        67       92             35

On 16 x 1 chips 256 slots do not fit (32.53 GiB). The report took 235 s, 464 s of
processor time and 4.7 GiB of memory. A row of the 4 x 4 chips, over which tensor goes,
is on two hosts: hosts 0 and 2 grade all rollouts.
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
