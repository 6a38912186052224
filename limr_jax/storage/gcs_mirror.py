"""A local folder that a remote one follows.

Files on gs:// cannot grow, and metrics are files that do. So they are written on this
host's disk, and each one that has changed is copied whole; a new host fetches them.
"""

import itertools
import pathlib
import shutil
import tempfile
import weakref

from etils import epath

from limr_jax import console
from limr_jax.errors import InputError
from limr_jax.storage import gcs, lease


class Mirror:
    """Keeps the files of `workdir` like those of `folder`, a folder of this disk.

    A run writes in `folder`, which is `workdir` itself where that is local. patterns:
    the files that are followed, as in glob. Where the remote folder has some they are
    fetched at once; `push` copies what has changed since, and removes what is gone.
    `close` removes the local copy, which else goes with the Mirror.

    Raises:
      InputError: the files that are there cannot be fetched.
    """

    def __init__(self, workdir, *patterns: str):
        self._remote = epath.Path(workdir) if gcs.remote(workdir) else None
        self._patterns = patterns
        self._pushed: dict[str, tuple[int, int]] = {}  # name → size, time of change
        if self._remote is None:
            self.folder = pathlib.Path(workdir)
            return
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="limr_jax_"))
        # At the interpreter's end at the latest, unless that is os._exit.
        self._remove = weakref.finalize(
            self, shutil.rmtree, self.folder, ignore_errors=True
        )
        with gcs.reading(workdir):
            for path in itertools.chain(*map(self._remote.glob, patterns)):
                here = self.folder / path.relative_to(self._remote)
                here.parent.mkdir(parents=True, exist_ok=True)
                here.write_bytes(path.read_bytes())
        # What was just fetched need not be pushed back.
        self._pushed = self._stamps()

    def _stamps(self) -> dict[str, tuple[int, int]]:
        paths = [path for x in self._patterns for path in self.folder.glob(x)]
        stats = {str(path.relative_to(self.folder)): path.stat() for path in paths}
        return {name: (x.st_size, x.st_mtime_ns) for name, x in stats.items()}

    def push(self) -> None:
        """Make the remote files like the local ones; InputError if that fails.

        Raises lease.Lost where they are another run's by now.
        """
        if self._remote is None:
            return
        lease.require(self._remote)
        now = self._stamps()
        try:
            for name in now:
                if now[name] != self._pushed.get(name):
                    path = self._remote / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes((self.folder / name).read_bytes())
            for name in self._pushed.keys() - now.keys():
                (self._remote / name).unlink(missing_ok=True)
        except gcs.failures() as error:
            raise InputError(
                f"{self._remote} could not be written ({error}); mend it, then give "
                "the same command again"
            ) from error
        # Last, so that after a failure the next push tries all of it again.
        self._pushed = now

    def close(self) -> None:
        """Remove the local copy of a remote folder, unless a push of it has failed."""
        if self._remote is None:
            return
        if self._stamps() != self._pushed:
            self._remove.detach()
            console.warn(f"{self._remote} lacks what lies in {self.folder}")
        self._remove()
        # A later push would take the files for gone, and remove the remote ones.
        self._remote = None
