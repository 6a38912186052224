"""Qwen2.5-Math-7B on a v4-32 (16 chips, 4 hosts): LIMR by PPO with online LIM.

    python launch/tpu.py --config configs/v4_32.py
    python launch/tpu.py --config configs/v4_32.py --compile_only      # needs no TPU

The latter: at most 27.41 of 30.75 GiB a chip (update; generate 25.29); 640 full-length
rollouts fit at a time, and 256 slots are 32 waves. A bound, not a measurement, every
response at its longest: a step takes at least 1,508 s, 168 steps 70 hours.

    seconds at least    compute   memory   interconnect
    update                  854      343            118
    generate                 89      432             13
    reference, values       222       85             43

So computing limits the update, and reading weights and cache limits generation. With
micro_batch_rows=32 the update took 32.8 GiB, too much (then without the kernel for
attention). Of fsdp x tensor, by --config.mesh.fsdp and .tensor:

    4 x 4    27.41 GiB (update)      1,508 s a step (generate reads 432 s)
    8 x 2    29.32 GiB (generate)    1,762 s (687 s: half of the weights, not 1/4)

The report took 132 s on two quiet cores, 258 s of processor time and 5.6 GiB of memory.
Measured on a v4-32: nothing yet.
"""

from configs import limr_tpu


def get_config(argument: str = ""):
    """PPO with a critic, 1,024 prompts x 8; arguments as in limr_tpu.py."""
    c = limr_tpu.get_config(argument)
    c.slice.type = "v4-32"
    c.mesh.fsdp = 4
    c.mesh.tensor = 4
    c.rollout.slots = 512
    c.micro_batch_rows = 16
    return c
