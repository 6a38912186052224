"""python -m limr_jax.studies.child_process SCRIPT …: it ends when its parent does.

The parent holds the other end of stdin. However the parent ends, the kernel closes that
end, and the script is killed, as nobody would be left who waits for it.
"""

import os
import pathlib
import runpy
import signal
import sys
import threading

from limr_jax import platform


def environment() -> dict[str, str]:
    """This process's environment variables, in which a child finds this package.

    It comes first on PYTHONPATH; what the user has there, a reward's module say, stays.
    """
    paths = [str(platform.import_root()), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _end_with_parent() -> None:
    """Block until stdin is closed, then kill this process."""
    # The parent writes nothing: this returns when its end is closed.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run the script as if it had been started itself."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = sys.argv[1:]
    # With -m the current folder stands there; a script has its own.
    sys.path[0] = str(pathlib.Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
