#!/usr/bin/env bash
# Runs a command on a TPU VM slice: check, rent, copy, install, run on all workers, collect, delete.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/tpu_vm.sh COMMAND NAME [OPTIONS] [-- ivj COMMAND ... | -- ARGUMENTS OF ivj train]

commands, in the order of a run:
  launch    check, create, copy, install and run
  check     does the recipe resolve, fit the slice, and what does it need? rents nothing
  create    rent the slice NAME; with --queued, ask for it and wait until it is there
  copy      the commit HEAD of this checkout to all workers
  install   Python, the package with [tpu], and the shared directory, on all workers
  run       start the command on all workers; it goes on without this terminal
  status    state of the slice; is the command alive, its last line, for every worker
  logs      the log of one worker
  stop      ask the command to save and end
  collect   copy the run's directory here
  delete    give the slice back (asks first)

options:
  --dry-run               print the commands and run none
  --slice=v5e:16x16       as for compile_check (v4, v5e, v5p, v6e); needed by launch and create
  --project=, --zone=     default: the zone named for that kind of chip; without --slice, gcloud's own
  --accelerator-type=, --runtime-version=
                          instead of those of the slice
  --spot                  cheaper, may be taken away
  --queued                create and delete as a queued resource
  --create-flag=FLAG      further flag of gcloud for create, such as --create-flag=--internal-ips
  --nfs=HOST:/EXPORT      mounted on all workers as /mnt/shared (install, launch), for a --workdir there;
                          one on gs:// or s3:// needs no file system that all hosts see
  --extras=remote,text    of the package, installed beside [tpu] and those that the paths and the recipe
                          ask for (install, launch)
  --env=NAME, --env=NAME=VALUE
                          variable of the command on the workers, such as WANDB_API_KEY; without a
                          value that of this shell, which is printed as the name only; may be repeated
  --price=X               of one chip-hour, for the cost of the run (check, launch)
  --records=N             clips of the training set, or its name, for its length (check, launch)
  --no-check              launch without the check, for a recipe that only the workers have
  --restarts=N            how often a failed command is started again (run, launch; default 3)
  --worker=N, --follow    logs: of which worker (default 0), and go on printing
  --workdir=DIR, --to=DIR collect: directory on the worker, and where to put it (default runs)
  --yes                   delete without asking

When a slice was taken away: delete it and launch again with the same arguments; the training goes on
from its newest checkpoint, where that is in a bucket or on --nfs. Exit code 2: a wrong command line.
END
}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python3}
COMMANDS="launch create copy install run status logs stop collect delete check"
MOUNT=/mnt/shared
# On a worker: is its training alive?
ALIVE="test -e train.pid && kill -0 \"\$(cat train.pid)\" 2>/dev/null"
IDLE="if $ALIVE; then echo 'a training is running; stop it first' >&2; exit 1; fi"

# A word as a shell reads it back.
quoted() {
  local word
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=@,+%-]+$ ]]; then
      printf '%s ' "$word"
    else
      printf "'%s' " "${word//\'/\'\\\'\'}"
    fi
  done
}

# NAME=VALUE, or NAME with the value of this shell, for the command on the workers.
variable() {
  local name=${1%%=*} value
  [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || fail "--env=$1: expected NAME or NAME=VALUE"
  if [[ $1 == *=* ]]; then
    value=${1#*=}
  else
    [[ -n ${!name+set} ]] || fail "--env=$name: it is not set here; expected --env=$name=VALUE"
    value=${!name}
    SECRETS+=("$(quoted "$name=$value")" "$name=\$$name ")
  fi
  VARIABLES=${VARIABLES:-env }$(quoted "$name=$value")
}

# Runs a command after printing it, or only prints it; what --env took from this shell is not shown.
step() {
  local line i shown=("$@")
  for ((i = 0; i < ${#SECRETS[@]}; i += 2)); do
    line=${SECRETS[i + 1]}
    shown=("${shown[@]//"${SECRETS[i]}"/$line}")
  done
  line=$(quoted "${shown[@]}")
  printf '%s\n' "${line% }"
  if [[ -z $DRY ]]; then
    "$@"
  fi
}

# A command of this package; the checkout need not be installed.
package() {
  PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" -m "$@"
}

read_slice() {
  local facts name value
  facts=$(package internvideo_jax.launch.cloud "$SLICE") || exit 2
  while IFS='=' read -r name value; do
    case $name in
      ACCELERATOR_TYPE) SLICE_TYPE=$value ;;
      TOPOLOGY) TOPOLOGY=$value ;;
      RUNTIME_VERSION) RUNTIME=${RUNTIME:-$value} ;;
      ZONE) ZONE=${ZONE:-$value} ;;
      HOSTS) HOSTS=$value ;;
    esac
  done <<<"$facts"
}

gcloud_tpu() {
  step gcloud compute tpus "$@" ${WHERE[@]+"${WHERE[@]}"}
}

on_workers() { # WORKER COMMAND
  gcloud_tpu tpu-vm ssh "$NAME" "--worker=$1" "--command=$2"
}

create() {
  local kind version
  [[ -n $SLICE || -n $ACCELERATOR ]] || fail "$COMMAND needs --slice, for example --slice=v5e:16x16"
  [[ -n $RUNTIME ]] || fail "--accelerator-type without --slice needs --runtime-version too"
  if [[ -n $ACCELERATOR ]]; then
    kind=("--accelerator-type=$ACCELERATOR")
  elif [[ $TOPOLOGY == *x*x* ]]; then
    # Slices of different shape share an accelerator type; the topology is exact.
    kind=("--type=${SLICE%%:*}" "--topology=$TOPOLOGY")
  else
    kind=("--accelerator-type=$SLICE_TYPE")
  fi
  if [[ -z $QUEUED ]]; then
    version="--version=$RUNTIME"
    gcloud_tpu tpu-vm create "$NAME" "${kind[@]}" "$version" ${CREATE[@]+"${CREATE[@]}"}
    return
  fi
  version="--runtime-version=$RUNTIME"
  gcloud_tpu queued-resources create "$NAME" "--node-id=$NAME" "${kind[@]}" "$version" \
    ${CREATE[@]+"${CREATE[@]}"}
  local state=""
  while true; do
    if [[ -n $DRY ]]; then
      gcloud_tpu queued-resources describe "$NAME" '--format=value(state.state)'
      return
    fi
    state=$(gcloud compute tpus queued-resources describe "$NAME" '--format=value(state.state)' \
      ${WHERE[@]+"${WHERE[@]}"})
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDED) fail "the queued resource $NAME is $state; see it with status, delete it" ;;
    esac
    printf 'queued resource %s: %s\n' "$NAME" "$state"
    sleep 30
  done
}

copy() {
  # Not a name that somebody else on this machine could have taken.
  local folder="${TMPDIR:-/tmp}/$NAME.XXXXXXXX" bundle
  if [[ -n $(git -C "$ROOT" status --porcelain --untracked-files=no) ]]; then
    if [[ -z $DRY ]]; then
      fail "uncommitted changes would stay here; commit them, since runs are traced by revision"
    fi
    printf 'warning: uncommitted changes; without --dry-run this is an error\n' >&2
  fi
  if [[ -z $DRY ]]; then
    folder=$(mktemp -d "$folder")
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf $(printf %q "$folder")" EXIT
  fi
  bundle=$folder/$NAME.bundle
  step git -C "$ROOT" bundle create --quiet "$bundle" HEAD
  gcloud_tpu tpu-vm scp "$bundle" "$NAME:internvideo.bundle" --worker=all
  # What a run left in the checkout stays.
  on_workers all "$IDLE; test -d internvideo || git init --quiet internvideo;\
 git -C internvideo fetch --quiet ../internvideo.bundle HEAD &&\
 git -C internvideo checkout --quiet --force --detach FETCH_HEAD"
}

install() {
  # The images bring an older Python than the package needs.
  on_workers all "python3 -m pip install --user --quiet uv &&\
 .local/bin/uv venv --quiet --allow-existing --python=3.12 venv && cd internvideo &&\
 ../.local/bin/uv pip install --quiet --python=../venv/bin/python -e '.[$WANTED]'"
  if [[ -n $NFS ]]; then
    on_workers all "sudo apt-get install --quiet --yes nfs-common && sudo mkdir -p $MOUNT &&\
 { mountpoint -q $MOUNT || sudo mount -t nfs $(quoted "$NFS")$MOUNT; } && sudo chmod 1777 $MOUNT"
  fi
}


# Sets WORKER_COMMAND; WANTED where the recipe was looked at.
check_run() { # check|
  local argument workdir="" found words=("--restarts=$RESTARTS" --python=../venv/bin/python)
  for argument in ${TRAIN[@]+"${TRAIN[@]}"}; do
    [[ $argument == --workdir=* ]] && workdir=${argument#--workdir=}
  done
  WORKER_COMMAND=$(package internvideo_jax.launch.experiment "${words[@]}" \
    -- ${TRAIN[@]+"${TRAIN[@]}"}) || exit 2
  if [[ ${HOSTS:-1} -gt 1 && -n $workdir && $workdir != /* && $workdir != *://* ]]; then
    fail "--workdir=$workdir: $SLICE has $HOSTS hosts, which share a checkpoint; expected an absolute\
 directory that all of them see, such as $MOUNT/RUN with --nfs=HOST:/EXPORT, or a place in a bucket, such\
 as gs://BUCKET/RUN"
  fi
  if [[ -n ${1:-} && -z $NO_CHECK ]]; then
    found=$(package internvideo_jax.launch.preflight "${words[@]}" "--slice=$SLICE" --jax=tpu \
      "--extras=$EXTRAS" "--price=$PRICE" "--records=$RECORDS" ${DRY:+--dry-run} \
      -- ${TRAIN[@]+"${TRAIN[@]}"}) || exit 2
    WANTED=${found##*$'\n'}
  fi
}

run() {
  # Only the process itself is signalled later, so it needs a session of its own, not a terminal.
  on_workers all "$IDLE; cd internvideo && { setsid nohup $VARIABLES$WORKER_COMMAND >>../train.log 2>&1 </dev/null &\
 echo \$! >../train.pid; }"
}

main() {
  if [[ $# -eq 0 || $1 == --help || $1 == -h ]]; then
    usage
    return
  fi
  COMMAND=$1
  [[ " $COMMANDS " == *" $COMMAND "* ]] || fail "unknown command '$COMMAND'; known: $COMMANDS"
  shift
  if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    usage
    return
  fi
  NAME=${1:-}
  [[ $NAME =~ ^[a-z][a-z0-9-]*$ ]] ||
    fail "'$NAME': expected a name of lower-case letters, digits and hyphens after $COMMAND"
  shift
  DRY="" SLICE="" PROJECT="" ZONE="" ACCELERATOR="" RUNTIME="" QUEUED="" NFS="" RESTARTS=3
  LOG_WORKER=0 FOLLOW="" WORKDIR="" TO=runs YES="" SLICE_TYPE="" TOPOLOGY="" HOSTS=""
  CREATE=() TRAIN=() WHERE=() WORKER_COMMAND="" EXTRAS="" WANTED=tpu PRICE=0 RECORDS="" NO_CHECK=""
  VARIABLES="" SECRETS=()
  while [[ $# -gt 0 ]]; do
    [[ $1 == -- || $1 != *[[:cntrl:]]* ]] ||
      fail "$(printf %q "$1"): expected no line breaks or control characters"
    case $1 in
      --help | -h) usage && return ;;
      --dry-run) DRY=1 ;;
      --slice=*) SLICE=${1#*=} ;;
      --project=*) PROJECT=${1#*=} ;;
      --zone=*) ZONE=${1#*=} ;;
      --accelerator-type=*) ACCELERATOR=${1#*=} ;;
      --runtime-version=*) RUNTIME=${1#*=} ;;
      --spot) CREATE+=(--spot) ;;
      --queued) QUEUED=1 ;;
      --create-flag=*) CREATE+=("${1#*=}") ;;
      --nfs=*) NFS=${1#*=} ;;
      --extras=*) EXTRAS=${1#*=} ;;
      --env=*) variable "${1#*=}" ;;
      --price=*) PRICE=${1#*=} ;;
      --records=*) RECORDS=${1#*=} ;;
      --no-check) NO_CHECK=1 ;;
      --restarts=*) RESTARTS=${1#*=} ;;
      --worker=*) LOG_WORKER=${1#*=} ;;
      --follow) FOLLOW=" -f" ;;
      --workdir=*) WORKDIR=${1#*=} ;;
      --to=*) TO=${1#*=} ;;
      --yes) YES=--quiet ;;
      --)
        shift
        TRAIN=("$@")
        break
        ;;
      *) fail "unknown option '$1'; see scripts/tpu_vm.sh --help" ;;
    esac
    shift
  done
  if [[ -z $DRY && $COMMAND != check ]] && ! command -v gcloud >/dev/null; then
    fail "gcloud is not installed; see https://cloud.google.com/sdk/docs/install, or use --dry-run"
  fi
  if [[ -n $NFS && $NFS != *:/* ]]; then
    fail "--nfs=$NFS: expected HOST:/EXPORT"
  fi
  if [[ -n $SLICE ]]; then
    read_slice
  fi
  if [[ -n $EXTRAS ]]; then
    WANTED=$(package internvideo_jax.launch.extras tpu "$EXTRAS") || exit 2
  fi
  [[ -z $ZONE ]] || WHERE+=("--zone=$ZONE")
  [[ -z $PROJECT ]] || WHERE+=("--project=$PROJECT")

  case $COMMAND in
    launch)
      check_run check # before anything is rented
      create
      copy
      install
      run
      ;;
    check)
      [[ -n $SLICE ]] || fail "check needs --slice, for example --slice=v5e:16x16"
      check_run check
      printf 'every worker installs [%s] and runs: %s\n' "$WANTED" "$WORKER_COMMAND"
      ;;
    run) check_run && run ;;
    status)
      gcloud_tpu tpu-vm describe "$NAME" '--format=value(state,health)'
      on_workers all "if $ALIVE; then echo running; else echo 'not running'; fi; tail -n 1 train.log"
      ;;
    logs) on_workers "$LOG_WORKER" "tail -n 100$FOLLOW train.log" ;;
    stop) on_workers all "if $ALIVE; then kill -TERM \"\$(cat train.pid)\"; fi" ;;
    collect)
      [[ -n $WORKDIR ]] || fail "collect needs --workdir, the run's directory on the worker"
      [[ $WORKDIR == /* ]] || WORKDIR=internvideo/$WORKDIR
      step mkdir -p "$TO"
      gcloud_tpu tpu-vm scp --recurse "$NAME:$WORKDIR" "$TO" --worker=0
      ;;
    delete)
      if [[ -n $QUEUED ]]; then
        gcloud_tpu queued-resources delete "$NAME" --force ${YES:+"$YES"}
      else
        gcloud_tpu tpu-vm delete "$NAME" ${YES:+"$YES"}
      fi
      ;;
    *) "$COMMAND" ;;
  esac
}

main "$@"
