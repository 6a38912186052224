"""Who writes a workdir: a lease, with its owner's name and a heartbeat.

`.lease` in the workdir is a JSON object that names the process; a thread touches it (on
gs:// writes it anew) every `BEAT_SECONDS`. A lease without a heartbeat for
`DEAD_SECONDS` is its owner's no more, and another process may take it. So it is where
the owner died on another machine; on its own machine the kernel knows.

On a disk there is also a lock on `.lock`, which the kernel lets go when the process
dies, and which two processes of one machine never both have. Across the machines that
share a network's disk it may hold or not, as the disk is mounted: there the lease says
more. On gs:// every change names the generation it replaces, so that of two processes
that begin at once one alone has the lease. On a disk that is locked machine by machine
the later one has it, and the other stops at its next write.
"""

import atexit
import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from typing import IO, Any, NamedTuple, Protocol

from etils import epath

from limr_jax import console
from limr_jax.errors import InputError, shown
from limr_jax.storage import files, gcs

BEAT_SECONDS = 10.0  # from one sign of life to the next
DEAD_SECONDS = 60.0  # without one, and the lease may be taken
LEASE, LOCK = ".lease", ".lock"
_LOOK_SECONDS = 1.0  # between two looks at somebody else's
_LARGEST = 65_536  # bytes of a file that is read as a lease
_ASK_SECONDS = 20.0  # for an answer of gs:// about one


class Lost(InputError):
    """The workdir is another process's now, or was removed: nothing more is written."""


class Standing(NamedTuple):
    """A lease as it stands in the workdir."""

    owner: Mapping[str, Any]  # as `_owner` makes it; empty where nobody can read it
    mark: Any  # another one after each heartbeat
    when: float  # of the last heartbeat, in seconds by the clock of the disk or bucket


class _Changed(Exception):
    """The lease is not the one that was seen, or that this process has."""


class _Place(Protocol):
    """Where a lease lies: on a disk or on gs://."""

    def read(self) -> Standing | None:
        """The lease that stands there; None without one."""

    def age(self, seen: Standing) -> float:
        """Seconds since its last heartbeat, by the clock of the disk or bucket."""

    def is_over(self, owner: Mapping[str, Any]) -> bool:
        """Whether its owner is known to write no more, however fresh the heartbeat."""

    def write(self, owner: Mapping[str, Any], mark: Any) -> Any:
        """Put the owner's in the place of the lease of this mark (None: of none).

        Returns its mark. Raises _Changed where the place can tell.
        """

    def beat(self, owner: Mapping[str, Any], mark: Any) -> Any:
        """Give a sign of life: the new mark. Raises _Changed."""

    def remove(self, owner: Mapping[str, Any], mark: Any) -> None:
        """Let the lease go. Raises _Changed."""


class _Disk:
    """A lease as a file; the time of its last change is the heartbeat."""

    def __init__(self, folder: epath.Path):
        self._folder, self._path = folder, folder / LEASE

    def read(self) -> Standing | None:
        gcs.refuse_pipe(self._path)
        try:
            # Opened, as a network's disk then asks for the newest.
            with open(self._path, "rb") as file:
                text, status = file.read(_LARGEST), os.fstat(file.fileno())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InputError(
                f"{self._path} cannot be read ({error.strerror}); mend or remove it"
            ) from error
        owner = _parse(text)
        mark = owner.get("id"), status.st_mtime_ns
        return Standing(owner, mark, status.st_mtime)

    def age(self, seen: Standing) -> float:
        # That clock may be another machine's, and a file that is written now shows it.
        probe = self._folder / f".probe-{socket.gethostname()}"
        try:
            probe.write_bytes(b"")
            return os.stat(probe).st_mtime - seen.when
        except OSError:
            return time.time() - seen.when
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()

    def is_over(self, owner) -> bool:
        # Whoever asks has the lock, which no process of its own machine has besides.
        return owner.get("machine") == _machine()

    def write(self, owner, mark):
        with files.replacing(self._path) as temporary:
            temporary.write_text(json.dumps(owner))
        return owner["id"], os.stat(self._path).st_mtime_ns

    def beat(self, owner, mark):
        seen = self.read()
        # Somebody has removed it, but not the run: it is put back.
        if seen is None and (self._folder / "run.json").exists():
            return self.write(owner, None)
        if seen is None or seen.owner.get("id") != owner["id"]:
            raise _Changed
        os.utime(self._path)
        return owner["id"], os.stat(self._path).st_mtime_ns

    def remove(self, owner, mark) -> None:
        seen = self.read()
        if seen is not None and seen.owner.get("id") != owner["id"]:
            raise _Changed
        self._path.unlink(missing_ok=True)


class _Bucket:
    """A lease as an object on gs://, whose generation is its mark."""

    def __init__(self, folder: epath.Path):
        self._bucket, self._prefix = gcs.bucket_of(folder)
        self._blob = self._bucket.blob(f"{self._prefix}{LEASE}")

    def read(self) -> Standing | None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        while blob := self._bucket.get_blob(self._blob.name, **_patience()):
            # It may change between the two requests.
            with contextlib.suppress(NotFound, PreconditionFailed):
                text = blob.download_as_bytes(
                    if_generation_match=blob.generation, **_patience()
                )
                owner = _parse(text[:_LARGEST])
                return Standing(owner, blob.generation, blob.updated.timestamp())
        return None

    def age(self, seen: Standing) -> float:
        # An object that was made now has the time of the bucket's clock.
        probe = self._bucket.blob(f"{self._prefix}.probe-{socket.gethostname()}")
        probe.upload_from_string(b"", **_patience())
        self._bucket.delete_blobs([probe], on_error=lambda _: None, **_patience())
        return probe.updated.timestamp() - seen.when

    def is_over(self, owner) -> bool:
        # This very process has let it go without being heard, as after a failure.
        return _is_here(owner) and (
            owner.get("pid") == os.getpid()
            or _began(owner.get("pid")) != owner.get("began")
        )

    def write(self, owner, mark):
        from google.api_core.exceptions import PreconditionFailed

        try:
            self._blob.upload_from_string(
                json.dumps(owner),
                content_type="application/json",
                if_generation_match=mark or 0,  # 0: there is none
                **_patience(),
            )
        except PreconditionFailed as error:
            # After an answer that was lost a second try finds the first one's object.
            seen = self.read()
            if seen is None or seen.owner.get("id") != owner["id"]:
                raise _Changed from error
            return seen.mark
        return self._blob.generation

    def beat(self, owner, mark):
        return self.write(owner, mark)

    def remove(self, owner, mark) -> None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        try:
            self._blob.delete(if_generation_match=mark, **_patience())
        except (NotFound, PreconditionFailed) as error:
            raise _Changed from error


def _patience() -> dict[str, Any]:
    """The retries and the time-out of a request to gs:// about a lease.

    Each change names what it changes, so that to ask for it again does no harm.
    """
    from google.cloud.storage.retry import DEFAULT_RETRY

    return {"retry": DEFAULT_RETRY.with_timeout(_ASK_SECONDS), "timeout": _ASK_SECONDS}


class _Lease:
    """The lease of a workdir that this process has, and the thread that beats for it.

    mark: None where it could not be written, on a disk; `stale` is then that of the
    lease in whose place it was to come, if there was one. lock: the locked file of a
    disk. lost: why nothing more may be written; empty while all is well.
    """

    def __init__(self, path: epath.Path, place: _Place, owner: Mapping[str, Any]):
        self.path, self.place, self.owner = path, place, owner
        self.mark: Any = None
        self.stale: Any = None
        self.lock: IO | None = None
        self.lost = ""
        self._over = threading.Event()
        self._turn = threading.Lock()  # main thread and heartbeat both renew
        self._beaten = _clock()

    def start(self) -> None:
        """Begin to give signs of life."""
        # A daemon: a process that ends does not wait for it.
        threading.Thread(target=self._beat, name="lease", daemon=True).start()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS) and not self.lost:
            self._renew()

    def _renew(self) -> None:
        """Give a sign of life now; `lost` then says whether the lease is another's."""
        with self._turn:
            if self.lost or self._over.is_set():
                return
            began = _clock()
            try:
                self.mark = self._beat_once()
                self._beaten = began
            except _Changed:
                self.lost = self._why_lost()
            # A disk or a network that fails. The next beat may be heard again, and who
            # writes there meanwhile is told.
            except (*gcs.failures(), InputError):
                pass

    def _beat_once(self) -> Any:
        if self.mark is None and self.stale is not None:
            seen = self.place.read()
            if seen is not None and seen.mark == self.stale:
                # The disk was full as this run began; the dead owner's still stands.
                return self.place.write(self.owner, self.stale)
        return self.place.beat(self.owner, self.mark)

    def _why_lost(self) -> str:
        try:
            seen = self.place.read()
        except (*gcs.failures(), InputError):
            seen = None
        if seen is None:
            return (
                f"{self.path} was removed while this run wrote there, which ends it: "
                "put it back to go on from its last checkpoint, or give the same "
                "command again to begin anew"
            )
        return (
            f"{self.path} has been taken over by {_name(seen.owner)}, so this run ends "
            "and writes nothing more there; one run a workdir: stop one of them, or "
            "give it a workdir of its own"
        )

    def require(self, *, sure: bool) -> None:
        """Raises Lost where the lease is another's; `sure`: as it is now."""
        # Nobody takes a lease whose last beat is younger than DEAD_SECONDS.
        old = _clock() - self._beaten > DEAD_SECONDS / 2
        if sure or old or self.lock is not None:
            self._renew()
        if self.lost:
            raise Lost(self.lost)

    def release(self) -> None:
        """Let another process have the workdir at once."""
        if self.owner["pid"] != os.getpid():  # a fork of this process, as it ends
            return
        with self._turn:
            self._over.set()
            if self.mark is not None and not self.lost:
                # Where it stays, whoever comes next waits for its heartbeat.
                with contextlib.suppress(_Changed, InputError, *gcs.failures()):
                    self.place.remove(self.owner, self.mark)
            if self.lock is not None:
                self.lock.close()


_held: dict[str, _Lease] = {}  # workdir → what this process has of it


def refuse_alive(path: epath.Path, flag: str) -> None:
    """InputError where a process of this machine writes the workdir.

    A look before anything that takes long; `take` decides. Nothing is written.
    """
    place = _Bucket(path) if gcs.remote(path) else _Disk(path)
    with gcs.reading(path):
        seen = place.read()
    owner = seen.owner if seen else {}
    pid = owner.get("pid")
    alive = _is_here(owner) and _began(pid) is not None
    if alive and pid != os.getpid() and _began(pid) == owner.get("began"):
        age = None if gcs.remote(path) else time.time() - seen.when
        raise _refusal(path, owner, age, flag)


def take(path: epath.Path, flag: str) -> None:
    """Make this process the one that writes the workdir, until `release` or its end.

    The folder is there. flag: what named it. Nothing happens where this process has it
    already. Waits up to DEAD_SECONDS for the heartbeat of an owner that may have died,
    and says so.

    Raises:
      InputError: another process has it, and is named; or it cannot be written.
    """
    if _key(path) in _held:
        return
    if gcs.remote(path):
        with files.writing(path):
            lease = _Lease(path, _Bucket(path), _owner())
            _claim(lease, flag)
    else:
        lease = _Lease(path, _Disk(path), _owner())
        lease.lock = _lock(lease, flag)
        try:
            _claim(lease, flag)
        except BaseException:
            lease.lock.close()
            raise
    _held[_key(path)] = lease
    lease.start()


def _claim(lease: _Lease, flag: str) -> None:
    """Write the lease, once there is none that is alive."""
    place = lease.place
    lease.stale = mark = _wait_until_over(lease, place.read(), flag)
    try:
        lease.mark = place.write(lease.owner, mark)
    except _Changed:
        seen = place.read()
        # Of two that begin at once this is the later one.
        raise _refusal(lease.path, seen.owner if seen else {}, 0.0, flag) from None
    except InputError as error:
        # A full disk: a run may go on there, and the lock guards it on this machine.
        if lease.lock is None:
            raise
        console.warn(f"{error}; no other machine sees that this run writes there")


def _wait_until_over(lease: _Lease, seen: Standing | None, flag: str) -> Any:
    """The mark of the lease that is to be replaced; None: there is none.

    Raises InputError where it is alive.
    """
    path, place = lease.path, lease.place
    if seen is None:
        return None
    name, over = _name(seen.owner), place.is_over(seen.owner)
    # At every start after a kill, of which the lock tells: that is nothing to say.
    if over and (lease.lock is not None or seen.owner.get("pid") == os.getpid()):
        return seen.mark
    age = max(0.0, place.age(seen))  # a time that is to come is no older than now
    if not over and age < DEAD_SECONDS:
        console.warn(
            f"{path} was being written by {name} {_ago(age)}; waiting up to "
            f"{DEAD_SECONDS - age:.0f} s to see whether that process lives"
        )
    first, start = seen, _clock()
    while not over and age + _clock() - start < DEAD_SECONDS:
        time.sleep(_LOOK_SECONDS)
        seen = place.read()
        if seen is None:  # its owner has let it go
            return None
        if seen.mark != first.mark:
            raise _refusal(path, seen.owner, 0.0, flag)
    console.warn(
        f"taking over {path} from {name}, which gave its last sign of life "
        f"{_ago(age + _clock() - start)}"
    )
    return seen.mark


def _refusal(path, owner: Mapping[str, Any], age: float | None, flag) -> InputError:
    known = f", whose last sign of life came {_ago(age)}" if age is not None else ""
    return InputError(
        f"{path} is being written by {_name(owner)}{known}; wait for it or stop it, or "
        f"give another {flag}"
    )


def _ago(seconds: float) -> str:
    return f"{max(0.0, seconds):.0f} s ago"


def _lock(lease: _Lease, flag: str) -> IO:
    """The locked file of a disk. The kernel lets go when the process dies.

    POSIX locks, since a forked grader's copy of the file does not hold them. They go
    with the first descriptor of the file that is closed, so nothing else opens it.
    """
    file_path = lease.path / LOCK
    gcs.refuse_pipe(file_path)
    try:
        file = open(file_path, "a")  # noqa: SIM115 (held for the run's life)
    except OSError as error:
        raise InputError(
            f"{lease.path} cannot be written ({error.strerror}); give a folder of your "
            "own"
        ) from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        # POSIX has two numbers for a lock that another process holds.
        if error.errno in (errno.EAGAIN, errno.EACCES):
            seen = lease.place.read()
            age = time.time() - seen.when if seen else None
            owner = seen.owner if seen else {}
            raise _refusal(lease.path, owner, age, flag) from None
        raise InputError(
            f"{file_path} cannot be locked ({error.strerror}), as on a network's "
            "disk without locks: two processes could write there; give a folder of "
            "another disk"
        ) from error
    return file


def _owner() -> dict[str, Any]:
    """Who this process is, as a lease says it; `id` is another one each time."""
    pid = os.getpid()
    return {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": pid,
        "machine": _machine(),
        "space": _space(),
        "began": _began(pid),
    }


def _is_here(owner: Mapping[str, Any]) -> bool:
    """Whether its process has its number on this machine, and in this container."""
    return owner.get("machine") == _machine() and owner.get("space") == _space()


def _machine() -> str:
    """This machine since it was started; a container's is that of its host."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return f"{socket.gethostname()} {uuid.getnode()}"  # not Linux


def _space() -> str:
    """In which the numbers of processes count: a container's is its own."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _began(pid) -> int | None:
    """When a process of this machine began, in ticks; None: there is no such one."""
    try:
        with open(f"/proc/{int(pid)}/stat", encoding="ascii", errors="replace") as file:
            # From field 3; the second, a name, may hold blanks and ")" itself.
            fields = file.read().rsplit(")", 1)[1].split()
        # One that nobody has waited for has ended all the same.
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, TypeError, IndexError, OverflowError):
        return None


def _name(owner: Mapping[str, Any]) -> str:
    if not owner.get("host"):
        return "another process"
    return f"process {shown(owner.get('pid'))} on {shown(owner['host'])}"


def _parse(text: bytes) -> dict[str, Any]:
    """What a lease says; empty where it is damaged."""
    try:
        owner = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _clock() -> float:
    """Seconds that also pass while the machine sleeps, where the system can tell."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def release(path) -> None:
    """Let another process have the workdir; no error where this one has not."""
    if lease := _held.pop(_key(path), None):
        lease.release()


def require(path, *, sure: bool = False) -> None:
    """Raises Lost where this process had the workdir and another one has it now.

    Before anything is written there, or in a folder below. sure: asks gs:// in any
    case; a disk is always asked. Nothing happens where this process never had it.
    """
    if lease := _of(path):
        lease.require(sure=sure)


def lost(path) -> bool:
    """Whether this process had the workdir and is known to have it no more."""
    lease = _of(path)
    return lease is not None and bool(lease.lost)


def _of(path) -> _Lease | None:
    """This process's lease of a workdir, or of one that the path lies in."""
    key = _key(path)
    leases = (_held[x] for x in [*_held] if f"{key}/".startswith(f"{x}/"))
    # A fork of this process has a copy of it, and no thread that beats.
    return next((x for x in leases if x.owner["pid"] == os.getpid()), None)


def _key(path) -> str:
    return str(path).rstrip("/") if gcs.remote(path) else os.path.abspath(path)


@atexit.register
def _release_all() -> None:
    for path in [*_held]:
        release(path)
