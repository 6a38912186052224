"""Qwen2.5-Math-1.5B on a v4-8 (4 chips, 1 host): LIMR by PPO with online LIM.

    python launch/tpu.py --config configs/v4_8.py
    python launch/tpu.py --config configs/v4_8.py --compile_only

The latter, 2026-11-30: at most 26.94 of 30.75 GiB a chip (generate; update 22.43); 384
slots are 22 waves, and at most 560 full-length rollouts fit at a time. A bound, not a
measurement, every response at its longest: a step takes at least 1,438 s, 168 steps 67
hours. A decode step of simulated lengths moves 1.36 times the weights and live cache.

    seconds at least    compute   memory   interconnect
    update                  791      560            135
    generate                 89      448             17
    reference, values       199      138             51

Mesh, by --config.mesh.fsdp, mesh.tensor and rollout.slots:

    fsdp x tensor  slots  GiB a chip              a step  update  generate  the others
    2 x 2            384  26.94 (generate)      1,438 s     791       448         199
    4 x 1            256  25.38 (generate)      1,594 s     791       603         199

The second row is of 2026-11-21. The report took 248 s beside other work, 412 s of
processor time.
With `:lora=yes` it is Qwen2.5-Math-7B by LoRA over an int8 base instead (lora_tpu.py),
on 1 x 4. The report of 2026-11-30: at most 23.36 of 30.75 GiB a chip (update; generate
18.90), all 512 rollouts at a time, at least 76 s a step (generation 21, update 55):
nine hours hold 423 steps at the bound and 141 at a third of it; the run has 40.

Measured on a v4-8: nothing yet.
"""

from configs import limr_tpu, lora_tpu
from limr_jax.config.load import switches

_BY_LORA = lora_tpu.remedies("Qwen2.5-Math-7B")
# One text for both, since a file's remedies do not know its argument.
REMEDIES = {
    field: f"{remedy}; with lora=yes {_BY_LORA[field]}"
    for field, remedy in limr_tpu.remedies("Qwen2.5-Math-1.5B").items()
}


def get_config(argument: str = ""):
    """PPO with a critic, 1,024 prompts x 8, or lora=yes; others as in their files."""
    parts = argument.split(",") if argument else []
    own = [part for part in parts if part.partition("=")[0] == "lora"]
    rest = ",".join(part for part in parts if part not in own)
    if switches(",".join(own), lora=False)["lora"]:
        c = lora_tpu.get_config(rest, "Qwen2.5-Math-7B")
        c.mesh.fsdp = 1
        c.mesh.tensor = 4
        c.rollout.slots = 512
        c.micro_batch_rows = 16
    else:
        c = limr_tpu.get_config(rest, "Qwen2.5-Math-1.5B")
        c.mesh.fsdp = 2
        c.mesh.tensor = 2
        c.rollout.slots = 384
        c.micro_batch_rows = 16
    c.slice.type = "v4-8"
    return c
