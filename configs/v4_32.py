"""Qwen2.5-Math-7B on a v4-32 (16 chips, 4 hosts): LIMR by PPO with online LIM.

    python launch/tpu.py --config configs/v4_32.py
    python launch/tpu.py --config configs/v4_32.py --compile_only      # needs no TPU

The latter: at most 28.00 of 30.75 GiB a chip (generate; update 27.41); 704 full-length
rollouts fit at a time, and 512 slots are 16 waves. A bound, not a measurement, every
response at its longest: a step takes at least 1,468 s, 168 steps 69 hours. A decode
step of simulated lengths moves 1.16 times the weights and live cache.

    seconds at least    compute   memory   interconnect
    update                  854      375            133
    generate                 91      393             14
    reference, values       222       93             46

Of meshes, by --config.mesh.fsdp and .tensor:

    fsdp x tensor   GiB a chip             a step   update   generate   the others
    4 x 4          28.00 (generate)       1,468 s      854        393          222

Of slots, on 4 x 4: 256 read 646 TB a chip in a step's generation and take 25.3 GiB, 512
read 471 TB and take 28.0, as each step's weights serve twice the rows.

The report took 384 s beside other work, 320 s of processor time and 5.7 GiB of memory.
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
