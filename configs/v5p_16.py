"""Qwen2.5-Math-7B on a v5p-16 (8 chips, 2 hosts): LIMR by PPO with online LIM.

    python launch/tpu.py --config configs/v5p_16.py
    python launch/tpu.py --config configs/v5p_16.py --compile_only

The latter: at most 75.38 of 95.74 GiB a chip (generate; update 57.91); 1,760
full-length rollouts fit at a time, and 1,024 slots are 8 waves. A bound, not a
measurement, every response at its longest: a step takes at least 1,581 s, 168 steps 74
hours. A decode step of simulated lengths moves 1.30 times the weights and live cache.

    seconds at least    compute   memory   interconnect
    update                1,023      245             73
    generate                109      291              4
    reference, values       266       57             22

Mesh, by --config.mesh.fsdp, mesh.tensor and rollout.slots:

    fsdp x tensor  slots  GiB a chip              a step  update  generate  the others
    4 x 2          1,024  75.38 (generate)      1,581 s   1,023       291         266
    4 x 2          1,536  91.11 (generate)      1,592 s   1,023       303         266
    8 x 1          1,024  78.15 (generate)      1,639 s   1,023       350         266

On 4 x 2 with 512 slots and XLA's attention, which reads whole rings, generation was
bound to 618 s.

The report took 216 s beside other work, 319 s of processor time and 3.8 GiB of memory.
Measured on a v5p-16: nothing yet.
"""

from configs import limr_tpu


def get_config(argument: str = ""):
    """PPO with a critic, 1,024 prompts x 8; arguments as in limr_tpu.py."""
    c = limr_tpu.get_config(argument)
    c.slice.type = "v5p-16"
    c.mesh.fsdp = 4
    c.mesh.tensor = 2
    c.rollout.slots = 1024
    c.micro_batch_rows = 32
    return c
