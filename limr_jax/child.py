"""python -m limr_jax.child SCRIPT …: the script, for as long as its parent lives.

The parent holds the other end of stdin. However it ends, the kernel closes that end,
and the script is killed: nobody would be left who waits for it.
"""

import os
import pathlib
import runpy
import signal
import sys
import threading


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = sys.argv[1:]
    sys.path[0] = str(pathlib.Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
