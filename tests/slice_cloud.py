"""A gcloud that records its calls, and whose hosts are folders on this disk."""

import pathlib
import shutil
import stat
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
WORKERS = 2
ZONE = "--zone=us-central2-b"

GCLOUD = r"""#!/bin/bash
# $FAKE: calls, slice (state TAB type TAB version TAB spot), deny (an error), home_N
printf '%s\n' "$*" >>"$FAKE/calls"
verb=$4 name=$5 worker="" command="" spot=""
type="" version=""
for word in "$@"; do
  case $word in
    --worker=*) worker=${word#*=} ;;
    --command=*) command=${word#*=} ;;
    --accelerator-type=*) type=${word#*=} ;;
    --version=*) version=${word#*=} ;;
    --spot) spot=True ;;
  esac
done
# Read once: a test may take it away between a look and a reading.
if denied=$(cat "$FAKE/deny_$verb" 2>/dev/null); then echo "$denied" >&2; exit 1; fi
need() {
  [[ -f $FAKE/slice ]] || {
    echo "ERROR: (gcloud.compute.tpus.tpu-vm.$verb) NOT_FOUND: Resource" \
      "'projects/p/locations/z/nodes/$name' was not found" >&2
    exit 1
  }
}
reachable() {
  need
  [[ $(cut -f 1 "$FAKE/slice") == READY ]] || { echo "ERROR: no route" >&2; exit 255; }
}
hosts() { if [[ $worker == all ]]; then echo 0 1; else echo "$worker"; fi; }
case $verb in
  create)
    printf 'READY\t%s\t%s\t%s\n' "$type" "$version" "$spot" >"$FAKE/slice"
    mkdir -p "$FAKE/home_0" "$FAKE/home_1"
    ;;
  describe) need; cat "$FAKE/slice" ;;
  delete) # what runs on a host ends with it
    need
    for pid in "$FAKE"/home_*/limr_jax_logs/pid; do
      [[ ! -s $pid ]] || kill -KILL -- "-$(<"$pid")" 2>/dev/null || true
    done
    rm -r "$FAKE/slice" "$FAKE"/home_*
    ;;
  scp)
    reachable
    for i in $(hosts); do
      case $5 in
        *:*) cp "$FAKE/home_$i/${5#*:}" "$6" ;;
        *) cp "$5" "$FAKE/home_$i/${6#*:}" ;;
      esac
    done
    ;;
  ssh)
    reachable; status=0
    for i in $(hosts); do
      echo "SSH: Attempting to connect to worker $i..." >&2
      env -i HOME="$FAKE/home_$i" PATH="$FAKE/host_bin:/usr/bin:/bin" WORKER="$i" \
        bash -c "$command" || {
        status=$?
        echo "##### Command execution on worker $i failed with exit status" \
          "$status. Continuing." >&2
      }
    done
    exit $status
    ;;
esac
"""
# The host's own Python is 3.10: it has pip and gets uv. The one that uv makes is here
# a script that notes what pip was asked for and is otherwise this test's Python.
HOST_PYTHON = r"""#!/bin/bash
printf '%s\n' "$*" >>"$HOME/python_calls"
[[ "$1 $2" == "-m uv" ]] || exit 0
mkdir -p "${@: -1}/bin"
cat >"${@: -1}/bin/python" <<'END'
#!/bin/bash
[[ "$1 $2" != "-m pip" ]] || { printf '%s\n' "$*" >>"$HOME/pip_calls"; exit; }
exec REAL_PYTHON "$@"
END
chmod +x "${@: -1}/bin/python"
""".replace("REAL_PYTHON", sys.executable)
HOST_CURL = """#!/bin/bash
[[ "${@: -1}" != */attributes/agent-worker-number ]] || echo "$WORKER"
"""


def script(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


class Cloud:
    """The fake's folder, a checkout, and slice.sh started in it."""

    def __init__(self, folder: pathlib.Path):
        self.processes = []
        self.fake = folder / "fake"
        self.checkout = folder / "checkout"
        script(self.fake / "bin" / "gcloud", GCLOUD)
        script(self.fake / "host_bin" / "python3", HOST_PYTHON)
        script(self.fake / "host_bin" / "curl", HOST_CURL)
        (self.checkout / "launch").mkdir(parents=True)
        for name in ("slice.sh", "slice_host.sh"):
            shutil.copy(ROOT / "launch" / name, self.checkout / "launch" / name)
        (self.checkout / "old name.py").write_text("old")
        (self.checkout / ".gitignore").write_text("runs/\n")
        (self.checkout / "runs").mkdir()
        (self.checkout / "runs" / "large").write_text("not copied")
        subprocess.run(["git", "init", "-q"], cwd=self.checkout, check=True)
        subprocess.run(["git", "add", "-A"], cwd=self.checkout, check=True)
        self.environment = {
            "FAKE": str(self.fake),
            "HOME": str(folder),
            "PATH": f"{self.fake / 'bin'}:/usr/bin:/bin",
        }

    def start(self, *words: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [str(self.checkout / "launch" / "slice.sh"), *words],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def run(self, *words: str, typed: str = "", code: int = 0) -> str:
        """What it said, stdout and stderr, after it ended with `code`."""
        process = self.start(*words)
        out, err = process.communicate(typed, timeout=60)
        assert process.returncode == code, out + err
        if code:
            assert [line[:7] for line in err.splitlines()][-1:] == ["error: "], err
            assert err.count("error: ") == 1, err
        return out + err

    def ready(self, kind: str = "v4-32") -> None:
        self.run("create", "s", "--type", kind, ZONE)
        self.run("setup", "s", ZONE)

    def calls(self, verb: str) -> list[str]:
        path = self.fake / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.split()[3] == verb]

    def set_state(self, state: str) -> None:
        path = self.fake / "slice"
        path.write_text("\t".join([state, *path.read_text().split("\t")[1:]]))

    def home(self, worker: int) -> pathlib.Path:
        return self.fake / f"home_{worker}"

    def pid(self, worker: int) -> int:
        return int((self.home(worker) / "limr_jax_logs" / "pid").read_text())

    def log(self, worker: int) -> str:
        path = self.home(worker) / "limr_jax_logs" / f"worker-{worker}.log"
        return path.read_text() if path.exists() else ""
