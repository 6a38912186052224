"""Qwen2.5-Math-7B on a v5p-16 (8 chips, 2 hosts): LIMR by PPO with online LIM.

    python launch/tpu.py --config configs/v5p_16.py
    python launch/tpu.py --config configs/v5p_16.py --compile_only

The latter, 2026-11-30: at most 83.94 of 95.74 GiB a chip (generate; update 51.86);
2,048 slots are 4 waves, and at most 2,592 full-length rollouts fit at a time. A bound,
not a measurement, every response at its longest: a step takes at least 1,491 s, 168
steps 70 hours. A decode step of simulated lengths moves 1.60 times the weights and live
cache, 1.34 by its schedule.

    seconds at least    compute   memory   interconnect
    update                1,023      304             90
    generate                109      202              9
    reference, values       266       77             33

Mesh, by --config.mesh.fsdp, mesh.tensor and rollout.slots:

    fsdp x tensor  slots  GiB a chip              a step  update  generate  the others
    4 x 2          2,048  83.94 (generate)      1,491 s   1,023       202         266
    8 x 1          1,024  69.11 (generate)      1,637 s   1,023       348         266

The second row is of 2026-11-21, and so is this: on 4 x 2 with 512 slots and XLA's
attention, which reads whole rings, generation was bound to 618 s.

The report took 343 s beside other work, 492 s of processor time.
Measured on a v5p-16: nothing yet.
"""

from configs import limr_tpu

REMEDIES = limr_tpu.remedies()


def get_config(argument: str = ""):
    """PPO with a critic, 1,024 prompts x 8; arguments as in limr_tpu.py."""
    c = limr_tpu.get_config(argument)
    c.slice.type = "v5p-16"
    c.mesh.fsdp = 4
    c.mesh.tensor = 2
    c.rollout.slots = 2048
    c.micro_batch_rows = 32
    return c
