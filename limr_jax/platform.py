"""What this machine and its environment are: variables of JAX, libtpu, paths.

JAX reads its variables when it is imported, and its compiler reads XLA_FLAGS when the
first device is asked for. What they hold is the user's, so a mistake there is one line.
"""

import contextlib
import ctypes
import errno
import glob
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from limr_jax import console
from limr_jax.errors import InputError

_ON, _OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
# Variable → (the option as the programs need it, how the variable says so, why). Some
# machine images set some of them, and none of them is meant for a run.
_SET_ASIDE: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "JAX_ENABLE_X64": (False, _OFF, "the programs are written for 32 bits"),
    "JAX_NUMPY_DTYPE_PROMOTION": (
        "standard",
        ("standard",),
        "the programs are written for standard promotion",
    ),
    "JAX_THREEFRY_PARTITIONABLE": (
        True,
        _ON,
        "random numbers do not depend on the machine",
    ),
    "JAX_RANDOM_SEED_OFFSET": (0, ("0",), "random numbers are those of config.seed"),
    "JAX_DEBUG_INFS": (False, _OFF, "what may not be drawn is -inf by design"),
    "JAX_DISABLE_JIT": (False, _OFF, "a run's programs are compiled"),
    **dict.fromkeys(
        (
            "JAX_TRANSFER_GUARD",
            "JAX_TRANSFER_GUARD_HOST_TO_DEVICE",
            "JAX_TRANSFER_GUARD_DEVICE_TO_DEVICE",
            "JAX_TRANSFER_GUARD_DEVICE_TO_HOST",
        ),
        ("allow", ("allow",), "the loop guards its own transfers"),
    ),
}
_PROBE = "import jax; jax.devices()"
_PROBE_SECONDS = 60
# "F0101 00:00:00.0 7 flags.cc:9] Unknown flag" says "Unknown flag".
_LOGGED = re.compile(r"[EF]\d{4} .*?\] (.*)")  # of absl, in the compiler
# Files of JAX → the variables that what is raised there may come from; (): any.
_READERS = {
    "jax/_src/config.py": (),
    "jax/_src/xla_bridge.py": (
        "JAX_PLATFORMS",
        "JAX_PLATFORM_NAME",
        "JAX_NUM_CPU_DEVICES",
        "XLA_FLAGS",
    ),
}


def set_aside() -> list[str]:
    """Take from the environment what a run does not follow; returns a line for each.

    To be called before JAX is asked for a device; it may be imported.
    """
    lines = []
    # A notebook's kernel sets it to a module that another Python need not have, and
    # matplotlib refuses to be imported. No script shows a picture: nothing is said.
    os.environ.pop("MPLBACKEND", None)
    for name, (option, usual, why) in _SET_ASIDE.items():
        value = os.environ.pop(name, None)
        if value is not None and value.lower() not in usual:
            lines.append(f"{name}={value} is set aside: {why}")
            # An imported JAX has read the variable already.
            if "jax" in sys.modules:
                # A later JAX may have no such option any more.
                with contextlib.suppress(AttributeError):
                    sys.modules["jax"].config.update(name.lower(), option)
    return lines


@contextlib.contextmanager
def importing_jax() -> Iterator[None]:
    """For the imports of a script: what JAX cannot read is one line and exit code 2.

    JAX reads most variables when it is imported, here before `load.run_main`.
    """
    for line in set_aside():
        print(console.shown(line), file=sys.stderr)
    try:
        yield
    except Exception as error:
        # A fault that is not the environment's keeps its traceback.
        if (line := complaint(error)) is None:
            raise
        print(f"error: {console.shown(line)}", file=sys.stderr)
        raise SystemExit(2) from None


def check_options() -> None:
    """InputError where JAX's options are not those that the programs are written for.

    `set_aside` has seen to that in what people launch; this is for other programs, such
    as a notebook. Transfers are guarded where a run needs it.
    """
    # Whoever calls has imported JAX; this module itself must load without it.
    options = sys.modules["jax"].config
    for name, (option, _, why) in _SET_ASIDE.items():
        value = getattr(options, name.lower(), option)
        if value != option and "GUARD" not in name:
            raise InputError(
                f"{name.lower()}={value}, but {why}: unset {name}, or give "
                f"jax.config.update('{name.lower()}', {option!r})"
            )


def check_compiler_flags() -> None:
    """InputError where the compiler does not understand XLA_FLAGS.

    It would abort the process that asks for a device, so another one is asked.
    """
    flags = os.environ.get("XLA_FLAGS")
    if not flags:
        return
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE],
            # The CPU's compiler parses the flags, too, and holds no accelerator.
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return  # the run itself will say
    logged = next(filter(None, map(_LOGGED.match, probe.stderr.splitlines())), None)
    if probe.returncode and logged:
        raise InputError(
            f"XLA_FLAGS={flags}: {logged[1].rstrip('.')}; correct or unset it"
        )


def complaint(error: BaseException) -> str | None:
    """One line for what JAX raised as it read the environment or started devices.

    None for whatever was raised elsewhere.
    """
    reader = next((x for x in _READERS if _raised_in(x, error)), None)
    if reader is None:
        return None
    message = " ".join(str(error).split()).rstrip(".") or "no device is there"
    names = _READERS[reader] or [
        name
        for name in sorted(os.environ)
        # JAX names the variable or its option: JAX_ENABLE_X64, enable_x64.
        if name.startswith("JAX_") and name[4:].lower() in message.lower()
    ]
    settings = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    if not settings:
        return f"the devices do not start: {message}" if _READERS[reader] else None
    return f"{', '.join(settings)}: {message}; correct or unset it"


def has_libtpu() -> bool:
    """Whether the TPU's compiler and driver is where JAX looks for it."""
    path = os.environ.get("TPU_LIBRARY_PATH")
    return bool(path or importlib.util.find_spec("libtpu"))


def attached() -> bool:
    """Whether this machine has TPU chips."""
    # Older TPU machines have /dev/accel0, newer ones /dev/vfio/0.
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def spare_libtpu() -> None:
    """Let JAX take the CPU where libtpu is there for compiling, and nothing to run on.

    It would ask libtpu first, which says in five lines that it finds no TPU. To be
    called before JAX is asked for a device; it may be imported.
    """
    # NVIDIA (two), a GPU as Linux within Windows sees it, AMD.
    gpus = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
    if (
        os.environ.get("JAX_PLATFORMS")
        or not has_libtpu()
        or attached()
        or any(map(os.path.exists, gpus))
        or importlib.metadata.entry_points(group="jax_plugins")  # other accelerators
    ):
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def import_root() -> pathlib.Path:
    """The folder from which Python imports this package: a checkout, or site-packages.

    Whoever starts another Python puts it on that one's PYTHONPATH.
    """
    return pathlib.Path(__file__).resolve().parents[1]


def launch_root() -> pathlib.Path:
    """The folder that holds configs/ and launch/.

    It is the checkout or, where the package was installed from a wheel,
    limr_jax/shipped, which the wheel alone has (pyproject.toml). That folder holds
    nothing else, so that it may stand on sys.path for `from configs import base`:
    limr_jax/ itself would hide the standard library's `platform`.
    """
    shipped = import_root() / "limr_jax" / "shipped"
    return shipped if shipped.is_dir() else import_root()


def launch_words(script: str) -> list[str]:
    """What follows `python` to start a script of launch/, such as "launch/tpu.py".

    In a checkout that is the script's name. From a wheel it is `-m` and the name of
    the module, which works from any folder.
    """
    if launch_root() == import_root():
        return [script]
    module = script.removesuffix(".py").replace("/", ".")
    return ["-m", f"limr_jax.shipped.{module}"]


def as_launched(text: str) -> str:
    """The text with each `python launch/NAME.py` as it is to be typed here.

    In a checkout the text remains as it is.
    """
    return re.sub(
        r"python (launch/\w+\.py)",
        lambda match: " ".join(["python", *launch_words(match[1])]),
        text,
    )


def resolve(path: str) -> pathlib.Path:
    """A path as given, or else below the folder that this package is imported from."""
    expanded = pathlib.Path(path).expanduser()
    inside = import_root() / expanded
    return inside if not expanded.exists() and inside.exists() else expanded


# What no program can mend: rights, room, and devices that fail.
_SYSTEMS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG),
}


def refusal(error: BaseException) -> str | None:
    """One line for what the operating system refused; None for any other error.

    For what is written or read where no module has words of its own for it.
    """
    if not isinstance(error, OSError) or error.errno not in _SYSTEMS:
        return None
    frame = traceback.extract_tb(error.__traceback__)[-1]
    # Not every OSError is of a file: writing to a pipe names none.
    place = error.filename or f"line {frame.lineno} of {frame.filename}"
    return f"{place}: {os.strerror(error.errno)}; check path, rights and room"


def _raised_in(file: str, error: BaseException) -> bool:
    """Whether a file of JAX raised this.

    JAX takes its own frames out of what leaves its functions, but not out of the error
    that it was handling and repeats.
    """

    def places(one):
        frames = traceback.extract_tb(one.__traceback__)
        return [frame.filename.replace(os.sep, "/") for frame in frames]

    if any(place.endswith(file) for place in places(error)[-1:]):
        return True
    cause = error.__context__
    repeated = cause is not None and str(cause) and str(cause) in str(error)
    return bool(repeated) and any(place.endswith(file) for place in places(cause))


def return_freed_memory() -> None:
    """Return to the system what this process has freed and its allocator has kept.

    glibc keeps pages of freed blocks below one that is in use. When a step's programs
    of SmolLM2 are compiled, these are 1.2 to 1.4 of the process's 3.5 GiB. With another
    C library nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
