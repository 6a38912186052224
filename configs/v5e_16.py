"""Qwen2.5-Math-1.5B on a v5litepod-16 (16 chips, 4 hosts): LIMR by PPO with online LIM.

    python launch/tpu.py --config configs/v5e_16.py
    python launch/tpu.py --config configs/v5e_16.py --compile_only

The latter, 2026-11-30: at most 12.58 of 15.75 GiB a chip (generate; update 8.16); 1,024
slots are 8 waves, and at most 1,600 full-length rollouts fit at a time. A bound, not a
measurement, every response at its longest: a step takes at least 713 s, 168 steps 33
hours. A decode step of simulated lengths moves 1.27 times the weights and live cache.

    seconds at least    compute   memory   interconnect
    update                  276      392             92
    generate                 30      173              6
    reference, values        70      148             49

XLA makes windowed products of weights that lie over many chips of fsdp, and writes the
partial sums again for each: reference and values move 121 TB a chip. On 2026-11-21 they
moved 112 on 8 x 2 and 51 on 4 x 4. But tensor=4 does not divide 2 kv heads: each chip
has the cache of both, and 256 slots did not fit (16.87 GiB).

The report took 390 s beside other work, 515 s of processor time.
Measured on a v5e-16: nothing yet.
"""

from configs import limr_tpu

REMEDIES = limr_tpu.remedies("Qwen2.5-Math-1.5B")


def get_config(argument: str = ""):
    """PPO with a critic, 1,024 prompts x 8; arguments as in limr_tpu.py."""
    c = limr_tpu.get_config(argument, "Qwen2.5-Math-1.5B")
    c.slice.type = "v5litepod-16"
    c.mesh.fsdp = 8
    c.mesh.tensor = 2
    c.rollout.slots = 1024
    c.micro_batch_rows = 32
    return c
