"""Qwen2.5-Math-1.5B on a v4-8 (4 chips, 1 host): LIMR by PPO with online LIM.

    python launch/tpu.py --config configs/v4_8.py
    python launch/tpu.py --config configs/v4_8.py --compile_only

The latter: at most 26.23 of 30.75 GiB a chip (generate; update 25.30); 192 slots are 43
waves. A bound, not a measurement, every response at its longest: a step takes at least
1,668 s, 168 steps 78 hours. A decode step of simulated lengths moves 1.23 times the
weights and live cache.

    seconds at least    compute   memory   interconnect
    update                  791      436            104
    generate                 87      678              8
    reference, values       199       89             31

Mesh, by --config.mesh.fsdp, mesh.tensor and rollout.slots:

    fsdp x tensor  slots  GiB a chip              a step  update  generate  the others
    2 x 2            128  28.24 (generate)      1,750 s     791       760         199
    2 x 2            192  26.23 (generate)      1,668 s     791       678         199
    2 x 2            256  31.23 (generate): does not fit
    4 x 1            128  29.68 (generate)      2,000 s     791     1,009         199

(With 192 slots the report says "at most 352 fit"; XLA needs more for 256 than cache.)
The report took 303 s beside other work, 341 s of processor time and 4.7 GiB of memory.
Measured on a v4-8: nothing yet.
"""

from configs import limr_tpu


def get_config(argument: str = ""):
    """PPO with a critic, 1,024 prompts x 8; arguments as in limr_tpu.py."""
    c = limr_tpu.get_config(argument, "Qwen2.5-Math-1.5B")
    c.slice.type = "v4-8"
    c.mesh.fsdp = 2
    c.mesh.tensor = 2
    c.rollout.slots = 192
    c.micro_batch_rows = 16
    return c
