"""A workdir: whose it is, who writes there, and the finished run's result.

A run is what it computes, not where its input lies: run.json holds the config and,
under `content`, a digest of what each field that is a path stands for. These fields are
compared by their digests, so that a run goes on after its data, its tokenizer or its
first model has moved.
"""

import contextlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from limr_jax.config.diff import config_differences, differences, plain
from limr_jax.errors import InputError
from limr_jax.multihost import agree
from limr_jax.storage import files, gcs, lease

_RUN, _RESULT = "run.json", "result.json"
KERNELS = "kernels.json"  # what a run's start has found of its kernels
# What a start that was killed early, or a look at a bucket's rights, leaves of ours.
_OURS = re.compile(r"\.lock|\.lease|\.probe-.*|\.(run|\.lease)\.\d+\.tmp(\.json)?")
# What a kill leaves of a file that was about to be replaced (`files.replacing`).
_HALF = re.compile(r"\.[\w.]+\.\d+\.tmp(\.\w+)?")
# Fields that may change under a run: they say where its numbers are shown as well.
_FREE = ("config.wandb.",)
_AGAIN = "mend it, then give the same command again"


def workdir_path(workdir: str | epath.PathLike, rights=gcs.READ) -> epath.Path:
    """The workdir as an absolute path; gs:// stays as it is.

    Raises:
      InputError: this process lacks one of the `rights` on a gs:// folder.
    """
    gcs.check(workdir, rights)
    path = epath.Path(workdir)
    return path if gcs.remote(path) else epath.Path(pathlib.Path(path).absolute())


def claim(
    workdir: str | epath.PathLike,
    identity: Mapping[str, Any],
    *,
    flag: str = "--workdir",
) -> None:
    """Make the workdir this run's, or check that it is; before anything is written.

    All processes call it, process 0 writes; it waits for all of them, and raises as
    `agree.barrier` too.

    identity: nested, as JSON can hold it: `config` (with every field), `version`, …,
    and `content`, which maps fields (`data.train` of the config, or of the identity
    itself) to digests of what they name. A folder that is not there, or is empty,
    becomes the run's and gets the identity as run.json. One that holds a run must hold
    this one: the identities are the same, except that `config.num_steps` may have grown
    (then the old result goes), that a field of `content` may name another place, and
    that `config.wandb` may be another.
    Raises InputError, which names `flag`, for another run's folder, for one that holds
    other files and no run, and while another process writes there (lease.py); the
    folder is then as it was. The claim holds until `release` or until the process ends.
    """
    path = workdir_path(workdir, gcs.WRITE)
    identity = plain(identity)
    old = read_run(path, missing_ok=True)
    if old is None:
        _refuse_foreign(path, flag)
    else:
        _check_same(path, old=old, new=identity, flag=flag)
    # No process may compare with what process 0 writes below.
    agree.barrier("claim: compared")
    if jax.process_index() == 0:
        gcs.make_folder(path)
        lease.take(path, flag)
        old = _look_again(path, old, identity, flag)
        _remove_halves(path)
        # Before run.json: after a kill between the two no old result may stand beside
        # the new num_steps, or the run would pass for finished.
        if old is not None and _steps(old) != _steps(identity):
            with gcs.reading(path):
                (path / _RESULT).unlink(missing_ok=True)
        if old != identity:
            write_json(path / _RUN, identity)
    agree.barrier("claim: written")
    # Read back by all: who has no run.json, or another, does not share the folder.
    if fields := _differences(read_run(path, missing_ok=True) or {}, identity):
        raise InputError(
            f"{path / _RUN} of process 0 is not this host's ({'; '.join(fields[:3])}): "
            f"give all hosts one {flag} that they share, gs://BUCKET/RUN, and one data"
        )


def release(workdir: str | epath.PathLike) -> None:
    """Let another process claim the workdir; no error where it was not claimed."""
    lease.release(workdir_path(workdir, ()))


def read_run(workdir: str | epath.PathLike, *, missing_ok: bool = False):
    """The identity in a workdir's run.json; InputError where there is none."""
    path = workdir_path(workdir) / _RUN
    if (identity := _read_json(path)) is None and not missing_ok:
        raise InputError(f"{path} does not exist; give the workdir of a run")
    return identity


def write_result(workdir: str | epath.PathLike, result: Mapping[str, Any]) -> None:
    """Keep a finished run's result (process 0 writes); Lost where it is another's."""
    if jax.process_index() == 0:
        lease.require(workdir_path(workdir, ()), sure=True)
        write_json(workdir_path(workdir) / _RESULT, plain(result))


def read_result(workdir: str | epath.PathLike) -> dict[str, Any] | None:
    """The result of a finished run; None where the run is not finished."""
    return _read_json(workdir_path(workdir) / _RESULT)


def read_kernels(workdir: str | epath.PathLike) -> list[dict[str, Any]]:
    """The rows of kernels.json; none where no kernel fitted.

    Raises InputError where it cannot be read.
    """
    rows = (_read_json(workdir_path(workdir) / KERNELS) or {}).get("kernels")
    rows = rows if isinstance(rows, list) else []
    return [row for row in rows if isinstance(row, dict)]


def write_json(path: epath.Path, value: Any) -> None:
    """Write a value as indented JSON, the file whole or not at all."""
    files.write_text(path, json.dumps(value, indent=2) + "\n")


def _read_json(path: epath.Path) -> dict[str, Any] | None:
    """The object in a file; None without the file."""
    gcs.refuse_pipe(path)
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (*gcs.failures(), ValueError, RecursionError) as error:
        cause = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({cause}); {_AGAIN}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object; {_AGAIN}")
    return value


def _refuse_foreign(path: epath.Path, flag: str) -> None:
    """InputError where the folder holds what no run of ours has put there."""
    try:
        entries = [*path.iterdir()] if path.exists() else []
    except FileNotFoundError:  # it has gone since: on gs:// with its last object
        entries = []
    except NotADirectoryError as error:
        raise InputError(f"{flag}={path} is a file; give a folder") from error
    except gcs.failures() as error:
        raise InputError(f"{path} cannot be read ({error}); mend it") from error
    names = sorted(x.name for x in entries if x != path)  # gs:// may list the folder
    if foreign := [name for name in names if not _OURS.fullmatch(name)]:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise InputError(
            f"{path} holds {foreign[0]!r}{more} but no {_RUN}, so it is no run's "
            f"folder; give another {flag}, a new or an empty one"
        )


def content(identity: Mapping[str, Any]) -> Mapping[str, Any]:
    """Field of the config → digest of what it names; empty where there are none."""
    digests = identity.get("content")
    return digests if isinstance(digests, Mapping) else {}


def _look_again(path: epath.Path, old, new: Mapping[str, Any], flag: str):
    """The identity that stands there now that nobody else writes; as `claim` raises.

    Another run may have begun there since, and ended, or this one by another process.
    """
    now = read_run(path, missing_ok=True)
    if now is not None and now != old:
        try:
            _check_same(path, old=now, new=new, flag=flag)
        except InputError:
            lease.release(path)
            raise
    return now


def _remove_halves(path: epath.Path) -> None:
    """Drop what kills have left; nobody else writes there now."""
    if not gcs.remote(path):
        for entry in [x for x in path.iterdir() if _HALF.fullmatch(x.name)]:
            with contextlib.suppress(OSError):
                entry.unlink()


def _steps(identity: Mapping[str, Any]):
    config = identity.get("config")
    return config.get("num_steps") if isinstance(config, dict) else None


def _check_same(path, old: Mapping[str, Any], new: Mapping[str, Any], flag) -> None:
    """InputError unless new is old, or old with more steps, or its data elsewhere."""
    if content(new) and not content(old):
        raise InputError(
            f"{path} was begun by limr_jax {old.get('version')}, which kept no digests "
            "of what it read, so that it cannot go on (but be evaluated and exported); "
            f"give another {flag}"
        )
    may_grow = isinstance(_steps(old), int) and isinstance(_steps(new), int)
    if may_grow:
        # As if both had the larger number: it then differs only where it would shrink.
        grown = max(_steps(old), _steps(new))
        old = dict(old, config=dict(old["config"], num_steps=grown))
    if fields := _differences(old, new):
        raise InputError(
            f"{path} holds a run that differs in {'; '.join(fields[:8])}"
            f"{f' and {len(fields) - 8} more' if len(fields) > 8 else ''}: start it "
            f"with what it had{' (only num_steps may grow)' if may_grow else ''}, or "
            f"give another {flag}"
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`diff.differences`, but for fields that both compare by their content."""
    by_content = {*content(old), *content(new)}
    old_config, new_config = old.get("config"), new.get("config")
    lines = []
    if isinstance(old_config, Mapping) and isinstance(new_config, Mapping):
        fields = config_differences(old_config, new_config)
        lines = [f"config.{line}" for line in fields]
        # Compared by now: the rest is what run.json has beside its config.
        old, new = ({**x, "config": None} for x in (old, new))
    # The lines of `content.…` stay: content that differs is named by them.
    places = tuple(f"{place}{x}: " for x in by_content for place in ("config.", ""))
    places += _FREE
    lines = sorted(lines + differences(old, new))
    return [line for line in lines if not line.startswith(places)]
