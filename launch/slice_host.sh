#!/usr/bin/env bash
# What launch/slice.sh has one host of a slice do, over ssh:
# slice_host.sh install | clear | check FLAGS... | start COMMAND... | status |
#     logs LINES [-F] | stop [again]
set -euo pipefail

readonly LOGS=$HOME/limr_jax_logs CODE=$HOME/limr_jax VENV=$HOME/limr_jax_venv
readonly PYTHON_VERSION=3.12

say() { printf 'worker %s: %s\n' "$number" "$*"; }
die() {
  printf 'error: worker %s: %s\n' "$number" "$*" >&2
  exit 2
}

# The number that JAX itself goes by (jax/_src/clusters/cloud_tpu_cluster.py).
worker_number() {
  curl -sf --max-time 5 -H 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number ||
    echo "${HOSTNAME##*-}"
}

# The images are Ubuntu 22.04 with Python 3.10. uv brings a newer one without root
# and without apt, whose lock the images' own upgrades hold for minutes after boot.
host_install() {
  tar -tzf "$HOME/limr_jax.tgz" >"$CODE/.slice_files"
  {
    { [[ -x $VENV/bin/python ]] ||
      { python3 -m pip install --user --upgrade uv &&
        python3 -m uv venv --seed --python "$PYTHON_VERSION" "$VENV"; }; } &&
      cd "$CODE" && "$VENV/bin/python" -m pip install -e '.[tpu]'
  } >"$LOGS/setup.log" 2>&1 || {
    tail -n 20 "$LOGS/setup.log"
    die "the installation failed; all of it: $LOGS/setup.log"
  }
  say "installed"
}

host_clear() { # what the last copy brought, so that no deleted file lives on
  [[ $(host_state) != running* ]] ||
    die "a run is going; end it first: launch/slice.sh stop"
  [[ ! -f $CODE/.slice_files ]] ||
    (cd "$CODE" && tr '\n' '\0' <.slice_files | xargs -0 rm -f --)
}

host_state() {
  local pid=""
  # A pid alone says little: after a restart another process may have it. So the
  # wrapper's name is looked for, too.
  [[ ! -f $LOGS/pid ]] || pid=$(<"$LOGS/pid")
  if [[ -z $pid ]]; then
    echo idle
  elif ps -o args= -p "$pid" 2>/dev/null | grep -q limr_jax_run; then
    echo "running, process $pid"
  elif [[ -f $LOGS/stopped ]]; then
    echo stopped
  elif [[ -f $LOGS/interrupted ]]; then
    echo "interrupted, the host was told to shut down"
  elif [[ ! -f $LOGS/exit ]]; then
    echo "lost, the host was restarted"
  elif [[ $(<"$LOGS/exit") == 0 ]]; then
    echo finished
  else
    echo "failed with exit code $(<"$LOGS/exit")"
  fi
}

host_status() { say "$(host_state)"; }

host_check() { # flags of launch/tpu.py
  [[ -x $VENV/bin/python ]] || die "not set up; launch/slice.sh setup"
  [[ $(host_state) != running* ]] ||
    die "a run is going; end it first: launch/slice.sh stop"
  rm -f "$LOGS/check.first_contact.json"
  cd "$CODE"
  PYTHONUNBUFFERED=1 "$VENV/bin/python" launch/tpu.py "$@" --first_contact \
    --workdir "$LOGS/check"
}

host_start() {
  local line=${*@Q}
  [[ -x $VENV/bin/python ]] || die "not set up; launch/slice.sh setup"
  if [[ $(host_state) == running* ]]; then
    [[ $(<"$LOGS/command") == "$line" ]] ||
      die "another run is going: $(cut -c1-200 "$LOGS/command")"
    return
  fi
  rm -f "$LOGS/exit" "$LOGS/stopped" "$LOGS/interrupted"
  printf '%s\n' "$line" >"$LOGS/command"
  printf '=== %s worker %s: %s\n' "$(date -u +%FT%TZ)" "$number" "$line" >>"$log"
  cd "$CODE"
  # A session of its own, with no file of ours open, so that ssh can go; unbuffered,
  # so that the log shows a hang where it happens. SIGTERM is noted and goes to the
  # command as well, which saves and ends; a wrapper that died of it could not tell.
  # shellcheck disable=SC2016 # expanded by the inner shell
  PATH="$VENV/bin:$PATH" PYTHONUNBUFFERED=1 setsid bash -c '
    logs=$1 code=$2; shift 2
    cd "$logs"; trap "touch interrupted" TERM
    (cd "$code" && exec "$@"); status=$?
    echo "$status" >exit' limr_jax_run "$LOGS" "$CODE" "$@" </dev/null >>"$log" 2>&1 &
  echo $! >"$LOGS/pid"
}

host_stop() { # [again]: not by hand, the watcher starts it again at once
  local pid seconds
  if [[ $(host_state) != running* ]]; then
    say "nothing runs"
    return
  fi
  pid=$(<"$LOGS/pid")
  [[ ${1:-} == again ]] || touch "$LOGS/stopped"
  # The minus: to the whole group, whose leader the wrapper is (setsid).
  kill -TERM -- "-$pid"
  for ((seconds = 0; seconds < 300; seconds++)); do
    [[ $(host_state) == running* ]] || break
    sleep 1
  done
  kill -KILL -- "-$pid" 2>/dev/null || true
  say "stopped"
}

host_logs() { # LINES [-F]
  [[ -f $log ]] || die "there is no log yet; nothing was run"
  tail -n "$1" ${2:+"$2"} "$log" | sed -u "s/^/[$number] /"
}

main() {
  number=$(worker_number)
  export LIMR_JAX_SLICE=$number # limr_jax/multihost/processes.py asks for it
  log=$LOGS/worker-$number.log
  mkdir -p "$LOGS"
  "host_$1" "${@:2}"
}

main "$@"
