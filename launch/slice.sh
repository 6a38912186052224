#!/usr/bin/env bash
# One TPU slice, from an empty project to a run that outlives preemption, with
# nothing but gcloud: no Ray, no Pathways, no Kubernetes. Bash 3.2 (macOS) will do.
#
# On the hosts: ~/limr_jax (the checkout), ~/limr_jax_venv, ~/limr_jax_logs; what runs
# there is slice_host.sh. Nothing is kept on this machine.
set -euo pipefail

usage() {
  cat <<'USAGE'
launch/slice.sh VERB NAME --zone ZONE [flags]

  create   make the slice (or find it made, or make it anew after preemption)
  setup    copy this checkout to all hosts and install it there
  check    measure the slice, minutes: what its chips give, whether the kernels hold,
           three steps of the type's config (or of `-- --config CONFIG ...`) beside
           their bounds; brings NAME.first_contact.json here, to be sent back
  run      start `-- COMMAND` detached on all hosts and watch it: after a preemption
           the slice is made anew and the same COMMAND started again. Ctrl-C ends the
           watching only; the same line takes it up again
  logs     follow the logs of all workers
  status   the slice's state and each worker's
  stop     end the run (SIGTERM: it saves first); the slice stays, and is paid for
  delete   delete the slice, after its name was typed or with --yes

  --type TYPE     v4-32, v5e-16 (= v5litepod-16), v5p-16, v6e-16, ... (create)
  --spot          cheaper, may be preempted at any time (create)
  --version V     TPU software version, when not the usual one of the type (create)
  --project P     when not gcloud's own default
  --no_watch      run: return as soon as the run is started
  --any_workdir   run: allow a --workdir that is not gs:// (one host, or a shared mount)
  --poll SECONDS  between two looks at the slice, default 60
  --worker N      logs: of one worker only
  --lines N       logs: start with the last N lines, default 20
  --no_follow     logs: print and return
  --yes           delete: do not ask
  --dry_run       print each gcloud command and run none

  launch/slice.sh create my-slice --type v4-32 --zone us-central2-b --spot
  launch/slice.sh setup my-slice --zone us-central2-b
  launch/slice.sh check my-slice --zone us-central2-b
  launch/slice.sh run my-slice --zone us-central2-b -- \
      python launch/tpu.py --config configs/v4_32.py --workdir gs://BUCKET/limr
USAGE
}

readonly HOST='bash ~/limr_jax/launch/slice_host.sh'

say() { $dry_run || printf '%s\n' "$*"; }
die() { # a mistake of the user's: one line, exit 2
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# The versions for JAX, by TPU version: https://cloud.google.com/tpu/docs/runtimes
software_version() {
  case $1 in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
  esac
}

quoted() { # the words of a command as they can be pasted into a shell
  local word line="" quote="'\\''"
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_=./:@%+,-]+$ ]] || word="'${word//\'/$quote}'"
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Every call of gcloud goes through here. Its chatter goes to a file, from which
# `fail` takes the one line that matters.
tpu() {
  local -a command=(gcloud compute tpus tpu-vm "$@" "--zone=$zone" --quiet)
  [[ -z $project ]] || command+=("--project=$project")
  ! $dry_run || { quoted "${command[@]}" && return; }
  # No stdin, which ssh would read to its end.
  "${command[@]}" 2>"$scratch/stderr" </dev/null
}

ssh_to() { # WORKER COMMAND
  tpu ssh "$name" "--worker=$1" "--command=$2"
}

fail() { # the cloud said no: what was tried, gcloud's one line, a remedy; exit 1
  local message remedy=""
  # From the first "error:" on (gcloud's may be JSON over several lines) to the next.
  message=$(awk 'tolower($0) ~ /^(error: |#####)/ { if (on) exit }
    tolower($0) ~ /^error: / { on = 1 } on' "$scratch/stderr" | tr -s '\n ' ' ' |
    sed -E 's/^[Ee][Rr][Rr][Oo][Rr]: (\(gcloud[^)]*\) )?//; s/ $//' | cut -c1-300)
  [[ -n $message ]] || message=$(tail -n 1 "$scratch/stderr")
  case $(tr '[:upper:]' '[:lower:]' <"$scratch/stderr") in
    *quota*) remedy="; ask for quota of this TPU type in $zone (Google Cloud console,\
 IAM & Admin > Quotas; --spot has its own), or take another zone" ;;
    *capacity* | *stockout*) remedy="; try again later, in another zone or with --spot" ;;
    *"gcloud auth login"* | *"active account"* | *reauth*) remedy="; run gcloud auth login" ;;
    *"ssh-add"*) remedy="; run ssh-add ~/.ssh/google_compute_engine" ;;
    *permission_denied* | *"has not been used in project"*) remedy="; check --project, \
your role (TPU Admin) and gcloud services enable tpu.googleapis.com" ;;
    *"slice_host.sh: no such file"*) message="launch/slice.sh setup comes first" ;;
  esac
  printf 'error: %s: %s%s\n' "$1" "${message:-no reason was given}" "$remedy" >&2
  exit 1
}

# Sets state (ABSENT: there is no such slice) and what the slice was made as.
look() {
  local line format
  format='value(state,acceleratorType,runtimeVersion,schedulingConfig.spot)'
  made_type="" made_version="" made_spot=""
  if $dry_run; then
    tpu describe "$name" "--format=$format"
    state=$assumed_state
  elif line=$(tpu describe "$name" "--format=$format"); then
    IFS=$'\t' read -r state made_type made_version made_spot <<<"$line"
    # gcloud writes True, False or nothing.
    [[ $made_spot == [Tt]rue ]] || made_spot=""
  elif grep -q NOT_FOUND "$scratch/stderr"; then
    state=ABSENT
  else
    return 1
  fi
}

must_be_ready() { # [looked]
  [[ ${1:-} == looked ]] || look || fail "looking at $name"
  case $state in
    READY) ;;
    ABSENT) die "there is no slice $name in $zone; launch/slice.sh create makes it" ;;
    *) die "$name is $state, not READY; launch/slice.sh create brings it back" ;;
  esac
}

make() { # until the slice is READY; 1 where gcloud refuses
  until [[ $state == READY ]]; do
    case $state in
      ABSENT)
        say "making $name: $type in $zone (minutes)"
        local -a made=("--accelerator-type=$type" "--version=$version")
        ! $spot || made+=(--spot)
        tpu create "$name" "${made[@]}" || return 1
        ;;
      PREEMPTED | TERMINATED) # a preempted slice cannot be started again
        tpu delete "$name" || return 1
        ;;
      STOPPED) tpu start "$name" || return 1 ;;
      *) say "$name is $state; waiting" && sleep "$poll" ;;
    esac
    if $dry_run; then state=READY; else look || return 1; fi
  done
}

slice_create() {
  [[ -n $type ]] || die "create needs --type, for example --type v4-32"
  look || fail "looking at $name"
  [[ -z $made_type || $made_type == "$type" ]] ||
    die "$name is there, a $made_type, not a $type; delete it or take another name"
  make || fail "making $name"
  say "$name is READY"
}

# The files that git knows or would add, as they are now. Packed once: a slice that
# is made anew in the middle of a run gets the code that the run began with.
pack() {
  local root
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  [[ ! -f $scratch/limr_jax.tgz ]] || return 0
  git -C "$root" rev-parse --git-dir >/dev/null 2>&1 ||
    die "$root is not a git checkout, so what to copy is unknown; clone it with git"
  # COPYFILE_DISABLE: macOS's tar would add a ._ file for each.
  (
    cd "$root"
    git ls-files -z --cached --others --exclude-standard |
      while IFS= read -r -d '' file; do
        [[ ! -e $file ]] || printf '%s\0' "$file" # deleted, but not yet in git
      done |
      COPYFILE_DISABLE=1 tar -czf "$scratch/limr_jax.tgz" --null -T -
  )
}

install_everywhere() {
  $dry_run || pack
  tpu scp "$scratch/limr_jax.tgz" "$name:limr_jax.tgz" --worker=all || return 1
  ssh_to all "set -e; if [ -f ~/limr_jax/launch/slice_host.sh ]; then $HOST clear; fi;\
 mkdir -p ~/limr_jax; tar -xzf ~/limr_jax.tgz -C ~/limr_jax; $HOST install"
}

slice_setup() {
  must_be_ready
  install_everywhere || fail "setting up $name"
  say "all hosts of $name are set up"
}

config_of() { # TYPE: the config that is written for it
  case $1 in
    v4-8 | v4-32 | v5p-16 | v6e-16) echo "configs/${1/-/_}.py" ;;
    v5litepod-1 | v5litepod-8 | v5litepod-16) echo "configs/v5e_${1#*-}.py" ;;
  esac
}

slice_check() {
  local config
  must_be_ready
  if [[ ${#command[@]} -eq 0 ]]; then
    config=$(config_of "${made_type:-$type}")
    [[ -n $config ]] || die "no config is written for ${made_type:-an unknown --type};\
 give one: launch/slice.sh check $name --zone $zone -- --config CONFIG"
    command=(--config "$config")
  fi
  # In the foreground: nothing is lost with it but minutes.
  ssh_to all "$HOST check $(quoted "${command[@]}")" || fail "checking $name"
  # All hosts have the same one.
  tpu scp "$name:limr_jax_logs/check.first_contact.json" "$name.first_contact.json" \
    --worker=0 || fail "bringing $name.first_contact.json"
  say "all of it lies in $name.first_contact.json: please send it back"
}

start_everywhere() {
  ssh_to all "$HOST start $(quoted "${command[@]}")"
}

# Sets run to one word for all workers; 1 where they cannot be reached.
probe() {
  lines=$(ssh_to all "$HOST status") || return 1
  case $lines in
    *": stopped"*) run=stopped ;;
    # Before failed: where one host was taken away, the others' runs fail after it.
    *": lost"* | *": interrupted"*) run=broken ;;
    *": failed"*) run=failed ;;
    *": running"*": idle"* | *": idle"*": running"*) run=broken ;;
    *": running"*) run=running ;;
    *": finished"*) run=finished ;;
    *) run=idle ;;
  esac
}

check_workdir() {
  local words=" ${command[*]} "
  case $words in
    *" --workdir=gs://"* | *" --workdir gs://"*) return ;;
    *launch/tpu.py*) ;;
    *) return ;;
  esac
  $any_workdir || die "the run's workdir is on each host's own disk, where neither the\
 other hosts nor a new slice find it; give --workdir gs://BUCKET/RUN (or --any_workdir)"
}

slice_run() {
  [[ ${#command[@]} -gt 0 ]] ||
    die "run needs a command: ... -- python launch/tpu.py --config CONFIG --workdir gs://..."
  check_workdir
  look || fail "looking at $name"
  ! $watch || $dry_run || pack # before the start: the checkout may change after it
  if $watch && [[ $state == PREEMPTED || $state == TERMINATED ]]; then
    whole=false
  else
    must_be_ready looked
    start_everywhere || fail "starting on $name"
    say "runs on all hosts; its output: launch/slice.sh logs $name --zone $zone"
  fi
  ! $dry_run || { echo "# then, every $poll s, describe and status over ssh; after a" \
    "preemption delete, create, setup and the same command again" && return; }
  ! $watch || watch_run
}

# Until the run has ended. Where the slice was taken away it is made anew, set up
# and started: whole is false from then until all of that is done.
watch_run() {
  local failures=0
  while sleep "$poll"; do
    # A look that fails ends nothing: the run goes on without this machine.
    look || state=UNREACHABLE
    case $state in
      READY) ;;
      PREEMPTED | TERMINATED | STOPPED)
        whole=false
        make_anew || continue
        ;;
      ABSENT) die "$name is gone; was it deleted? Make it: launch/slice.sh create" ;;
      *) say "$name is $state; looking again in $poll s" && continue ;;
    esac
    $whole || { make_whole && continue; }
    probe || { say "the workers of $name do not answer; asking again" && continue; }
    case $run in
      running) failures=0 ;;
      finished) say "finished on all hosts" && return ;;
      stopped) say "stopped by hand" && return ;;
      failed)
        # A preemption also breaks runs off, a little before the state says so.
        failures=$((failures + 1))
        [[ $failures -lt 2 ]] || report_failure
        ;;
      *)
        say "the run was broken off on part of the hosts; starting it again"
        ssh_to all "$HOST stop again" && start_everywhere || true
        ;;
    esac
  done
}

make_anew() { # 1: not yet
  say "$name is $state; making it anew"
  type=${type:-$made_type} version=${version:-$made_version}
  [[ -z $made_spot ]] || spot=true
  until make; do
    grep -qiE 'capacity|stockout|unavailable|deadline' "$scratch/stderr" ||
      fail "making $name anew"
    say "no capacity in $zone now; trying again in $poll s"
    sleep "$poll"
    look || return 1
  done
}

make_whole() {
  if install_everywhere && start_everywhere; then
    say "$name is back, and the same command runs on it"
    whole=true tries=0
  else # it was installed before, so this is the cloud's doing; but not for ever
    tries=$((tries + 1))
    [[ $tries -lt 5 ]] || fail "setting up $name anew, 5 times"
  fi
}

report_failure() {
  say "$lines"
  ssh_to all "$HOST logs 20" || true
  printf 'error: the run failed on %s; mend it, then run the same line again\n' \
    "$name" >&2
  exit 1
}

slice_logs() {
  must_be_ready
  ssh_to "$worker" "$HOST logs $lines_wanted $follow" || fail "reading $name's logs"
}

slice_status() {
  look || fail "looking at $name"
  say "$name: $state${made_type:+, $made_type in $zone}${made_spot:+, spot}"
  [[ $state == READY ]] || return 0
  ! $dry_run || { ssh_to all "$HOST status" && return; }
  probe || fail "asking the workers of $name"
  printf '%s\n' "$lines" | sort
}

slice_stop() {
  look || fail "looking at $name"
  [[ $state == READY ]] || { say "$name is $state; nothing runs on it" && return; }
  ssh_to all "$HOST stop" || fail "stopping the run on $name"
}

slice_delete() {
  look || fail "looking at $name"
  [[ $state != ABSENT ]] || { say "there is no slice $name in $zone" && return; }
  if ! $yes && ! $dry_run; then
    local typed=""
    printf 'Deleting %s and what lies on its disks. Type its name:\n' "$name" >&2
    read -r typed || true
    [[ $typed == "$name" ]] || die "not deleted: the name was not typed (or give --yes)"
  fi
  tpu delete "$name" || fail "deleting $name"
  say "$name is deleted"
}

parse() {
  name="" zone="" type="" version="" project="" poll=60 worker=all lines_wanted=20
  follow=-F spot=false yes=false dry_run=false watch=true any_workdir=false
  whole=true tries=0
  command=()
  while [[ $# -gt 0 ]]; do
    case $1 in
      --) command=("${@:2}") && return ;;
      --spot) spot=true ;; --yes) yes=true ;; --dry_run) dry_run=true ;;
      --no_watch) watch=false ;; --no_follow) follow="" ;;
      --any_workdir) any_workdir=true ;;
      --*=*)
        set -- "${1%%=*}" "${1#*=}" "${@:2}"
        continue
        ;;
      --zone | --type | --version | --project | --poll | --worker | --lines)
        [[ $# -gt 1 && -n $2 ]] || die "$1 needs a value"
        case $1 in
          --zone) zone=$2 ;; --type) type=$2 ;; --version) version=$2 ;;
          --project) project=$2 ;; --poll) poll=$2 ;; --worker) worker=$2 ;;
          --lines) lines_wanted=$2 ;;
        esac
        shift
        ;;
      -*) die "unknown flag $1; launch/slice.sh --help lists them" ;;
      *)
        [[ -z $name ]] || die "'$1' is a second name beside '$name'; a command goes after --"
        name=$1
        ;;
    esac
    shift
  done
}

check() {
  [[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
    die "the slice's name '$name' is not one; lower-case letters, digits and hyphens"
  [[ -n $zone ]] || die "--zone is missing, for example --zone us-central2-b"
  [[ $poll =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "--poll $poll is not a number of seconds"
  [[ $lines_wanted =~ ^[0-9]+$ ]] || die "--lines $lines_wanted is not a number"
  [[ $worker =~ ^(all|[0-9]+)$ ]] || die "--worker $worker is neither a number nor all"
  case $type in v5e-*) type=v5litepod-${type#v5e-} ;; esac
  [[ -z $type || $type =~ ^(v4|v5litepod|v5p|v6e)-[0-9]+$ ]] ||
    die "unknown --type $type; v4-N, v5e-N, v5p-N or v6e-N"
  [[ -z $type || -n $version ]] || version=$(software_version "$type")
  $dry_run || command -v gcloud >/dev/null ||
    die "gcloud is not on PATH; install it: https://cloud.google.com/sdk/docs/install"
}

main() {
  local verb=${1:-help}
  [[ $# -eq 0 ]] || shift
  case $verb in
    create | setup | check | run | logs | status | stop | delete) ;;
    help | -h | --help) usage && return ;;
    *) die "unknown verb '$verb'; create, setup, check, run, logs, status, stop or\
 delete" ;;
  esac
  parse "$@"
  check
  assumed_state=READY # what a dry run takes for granted
  [[ $verb != create ]] || assumed_state=ABSENT
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  "slice_$verb"
}

main "$@"
