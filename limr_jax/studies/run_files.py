"""The files that a run keeps in its workdir: nothing made of it takes their place."""

from limr_jax.errors import InputError
from limr_jax.storage import files, gcs

# Names in a workdir, each a file or a folder (storage/README.md).
_KEPT = ("run.json", "result.json", "metrics.jsonl", "evals.jsonl", "left_out.json")
_KEPT += ("warnings.jsonl", "kernels.json", "divergence", "rollouts", "checkpoints")
_KEPT += ("tensorboard", "model", ".lock", ".lease")


def refuse(out, workdir) -> None:
    """InputError where `out`, of the flag --out, is what the run in `workdir` keeps.

    out: a file on this machine that is to be written, there or not. A workdir on gs://
    holds none.
    """
    if gcs.remote(workdir):
        return
    # Links are followed: another name of a file is that file.
    place, folder = files.real(out), files.real(workdir)
    for name in _KEPT:
        if place.is_relative_to(files.real(folder / name)):
            raise InputError(
                f"--out {out} is of the run {workdir} itself ({name}); give another "
                "file"
            )
