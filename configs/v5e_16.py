"""Qwen2.5-Math-1.5B on a v5litepod-16 (16 chips, 4 hosts): LIMR by PPO with online LIM.

    python launch/tpu.py --config configs/v5e_16.py
    python launch/tpu.py --config configs/v5e_16.py --compile_only

The latter, of programs whose residual stream was still bf16 (v4_32.py has what fp32
adds): at most 12.48 of 15.75 GiB a chip (generate; update 6.39); 1,024 slots are 8
waves, and at most 1,600 full-length rollouts fit at a time. A bound, not a measurement,
every response at its longest: a step takes at least 665 s, 168 steps 31 hours. A decode
step of simulated lengths moves 1.27 times the weights and live cache.

    seconds at least    compute   memory   interconnect
    update                  276      356             82
    generate                 30      173              3
    reference, values        70      137             42

XLA makes windowed products of weights that lie over many chips of fsdp, and writes the
partial sums again for each: reference and values move 112 TB a chip on 8 x 2 and 51 on
4 x 4. But tensor=4 does not divide 2 kv heads: each chip has the cache of both, and 256
slots do not fit (16.87 GiB).

The report took 243 s beside other work, 329 s of processor time and 3.6 GiB of memory.
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
