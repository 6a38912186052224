"""The batch of a step whose update was no finite number, kept to be looked at.

`divergence/step_00000012.npz` in the workdir: `numpy.load` gives each array by its path
in the step's groups and scores, or in the packed rows of fine-tuning.
"""

import io
import re

import jax
import numpy as np

from limr_jax.multihost.arrays import on_host
from limr_jax.storage import files, gcs, lease
from limr_jax.storage.workdir import workdir_path

FOLDER = "divergence"
_KEPT = 3  # files: such steps come in a row
_NAME = re.compile(r"step_\d{8,}\.npz")


def save(workdir, step: int, batch) -> str:
    """Write the arrays of a pytree as one .npz file; returns where it lies.

    All processes call it, process 0 writes. Of more than three such files the oldest
    goes. A file that cannot be written ends nothing: that is said on stderr. Raises
    lease.Lost where the workdir is another run's by now.
    """
    arrays = on_host(batch)
    folder = workdir_path(workdir) / FOLDER
    path = folder / f"step_{step:08d}.npz"
    if jax.process_index() > 0:
        return str(path)
    lease.require(workdir, sure=True)
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    data = io.BytesIO()
    named = {_name(at): np.asarray(leaf) for at, leaf in leaves}
    # bfloat16 is no dtype of NumPy's own, and would be pickled: fp32 holds all of it.
    named = {
        name: x if x.dtype.isbuiltin == 1 else x.astype(np.float32)
        for name, x in named.items()
    }
    np.savez_compressed(data, **named)
    with files.Lenient(str(path), "the batch is not kept"):
        gcs.make_folder(folder)
        with files.replacing(path) as temporary:
            temporary.write_bytes(data.getvalue())
        old = sorted(x for x in folder.iterdir() if _NAME.fullmatch(x.name))
        for surplus in old[:-_KEPT]:
            surplus.unlink()
    return str(path)


def _name(path) -> str:
    """A leaf's path as a file's name within the archive: `0.drawn.ids_P`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")
