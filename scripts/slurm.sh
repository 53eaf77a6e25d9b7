#!/usr/bin/env bash
# Writes an sbatch file for a command on a Slurm cluster and submits it.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/slurm.sh [OPTIONS] -- ivj COMMAND ... | -- ARGUMENTS OF ivj train

  --dry-run             print the sbatch file; write and submit nothing
  --name=NAME           of the job (default internvideo)
  --nodes=N             default 1
  --gpus-per-node=N     default 8; 0 for CPU nodes
  --process-per=gpu     one process per GPU (default), or per node. Per node, the process takes all
                        GPUs of its node
  --cpus-per-process=N  default: the cluster's
  --time=24:00:00       limit of one submission; [days-]hours:minutes:seconds
  --save-seconds=N      SIGTERM this long before the limit, so that the run saves (default 120)
  --requeues=N          how often the job is queued again in all (default 100)
  --faults=N            how often in a row it is queued again after a fault that may pass (default 3)
  --restarts=N          how often a failed command is started again within a job (default 0)
  --partition=, --account=, --qos=, --constraint=
  --sbatch=OPTION       further option of sbatch, such as --sbatch=--exclusive; may be repeated
  --venv=DIR            environment to activate
  --extras=cuda,remote  of the package: installed into --venv from here, before the job is submitted,
                        with those that the paths and the recipe ask for
  --no-check            submit without looking at the recipe
  --container=IMAGE     a .sif file (Apptainer), or an image for srun --container-image (Pyxis)
  --mount=A:B           directory for the container; may be repeated. The current one always is
  --out=FILE            the sbatch file (default NAME.sbatch)

The current directory, the checkout, and --workdir lie on a file system that all nodes see; a --workdir
on gs:// or s3:// does as well. A job that reached its limit saves and is queued again, and so is one that ended with a fault that may pass (75, or
a signal: docs/launch.md has the table of exit codes); one that was cancelled or that would come to the
same end is not. Exit code 2: a wrong command line.
END
}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python3}

# A command of this package; the checkout need not be installed.
package() {
  PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" -m "$@"
}

# Runs a command, after printing it beside the sbatch file; a dry run only prints it.
step() {
  printf '%q ' "$@" >&2
  printf '\n' >&2
  if [[ -z $DRY ]]; then
    "$@"
  fi
}

number() { # FLAG VALUE LEAST
  [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ && $2 -ge $3 ]] || fail "$1=$2: expected a whole number of at least $3"
}

# Each becomes a line of the job script, or a part of one.
one_line() { # FLAG VALUE
  [[ $2 != *[[:cntrl:]]* ]] || fail "$1=$(printf %q "$2"): expected no line breaks or control characters"
}

# The sbatch file on standard output.
generate() {
  local tasks=1 prefix="" mount mounts
  if [[ $PER == gpu && $GPUS -gt 0 ]]; then
    tasks=$GPUS
  fi
  printf '#!/usr/bin/env bash\n'
  printf '#SBATCH %s\n' "--job-name=$NAME" "--nodes=$NODES" "--ntasks-per-node=$tasks" \
    "--time=$TIME" "--signal=TERM@$SAVE" --requeue --open-mode=append "--output=$NAME-%j.log" \
    ${OPTIONS[@]+"${OPTIONS[@]}"}
  if [[ $GPUS -gt 0 ]]; then
    printf '#SBATCH --gpus-per-node=%s\n' "$GPUS"
  fi
  if [[ -n $CPUS ]]; then
    printf '#SBATCH --cpus-per-task=%s\n' "$CPUS"
  fi
  printf 'set -uo pipefail\n'
  if [[ -n $VENV ]]; then
    printf 'source %q\n' "$VENV/bin/activate"
  fi
  if [[ $PER == node && $GPUS -gt 0 ]]; then
    printf '%s\n' "# Under Slurm jax gives a process one device, unless told which ones it has." \
      "export JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((GPUS - 1)))"
  fi
  printf '%s\n' "# By it the processes know each other." \
    "IVJ_JOB_TOKEN=\$(</proc/sys/kernel/random/uuid)" "export IVJ_JOB_TOKEN"
  printf '%s\n' "# The signal before the limit goes to the processes, not to this shell: here it means" \
    "# that somebody cancelled the job." "cancelled=" "trap 'cancelled=1' TERM"
  # A process that has saved must not end those that still save; a dead one is noticed by jax.
  printf 'srun --kill-on-bad-exit=0 --wait=%s' "$SAVE"
  if [[ $CONTAINER == *.sif ]]; then
    prefix=" apptainer exec --nv"
    for mount in "$PWD" ${MOUNTS[@]+"${MOUNTS[@]}"}; do
      prefix+=$(printf ' --bind=%q' "$mount")
    done
    prefix+=$(printf ' %q' "$CONTAINER")
  elif [[ -n $CONTAINER ]]; then
    mounts=$PWD:$PWD
    for mount in ${MOUNTS[@]+"${MOUNTS[@]}"}; do
      mounts+=,$mount
    done
    printf ' --container-image=%q --container-workdir=%q --container-mounts=%q' \
      "$CONTAINER" "$PWD" "$mounts"
  fi
  printf '%s %s\ncode=$?\n' "$prefix" "$WORKER"
  printf '%s\n' "# 143: saved after SIGTERM. 75, 134 to 139: a fault that may pass, counted until a save." \
    "faults=$NAME-\$SLURM_JOB_ID.faults" "again=" "case \$code in" \
    "  143) again=1; rm -f \"\$faults\" ;;" \
    "  75 | 13[4-9])" \
    "    echo \"\$code\" >>\"\$faults\" && [[ \$(wc -l <\"\$faults\") -le $FAULTS ]] && again=1 ;;" \
    "esac" \
    "if [[ -n \$again && -z \$cancelled && \${SLURM_RESTART_COUNT:-0} -lt $REQUEUES ]]; then" \
    "  scontrol requeue \"\$SLURM_JOB_ID\"" "fi" "exit \$code"
}

main() {
  DRY="" NAME=internvideo NODES=1 GPUS=8 PER=gpu CPUS="" TIME=24:00:00 SAVE=120 REQUEUES=100 FAULTS=3
  RESTARTS=0 VENV="" CONTAINER="" OUT="" EXTRAS="" NO_CHECK=""
  OPTIONS=() MOUNTS=()
  local train=() found wanted="" tasks=1
  one_line "the current directory" "$PWD"
  while [[ $# -gt 0 ]]; do
    [[ $1 == -- ]] || one_line "${1%%=*}" "${1#*=}"
    case $1 in
      --help | -h) usage && return ;;
      --dry-run) DRY=1 ;;
      --name=*) NAME=${1#*=} ;;
      --nodes=*) NODES=${1#*=} ;;
      --gpus-per-node=*) GPUS=${1#*=} ;;
      --process-per=*) PER=${1#*=} ;;
      --cpus-per-process=*) CPUS=${1#*=} ;;
      --time=*) TIME=${1#*=} ;;
      --save-seconds=*) SAVE=${1#*=} ;;
      --requeues=*) REQUEUES=${1#*=} ;;
      --faults=*) FAULTS=${1#*=} ;;
      --restarts=*) RESTARTS=${1#*=} ;;
      --partition=* | --account=* | --qos=* | --constraint=*)
        [[ $1 != *[[:space:]]* ]] || fail "$1: expected no spaces"
        OPTIONS+=("$1")
        ;;
      --sbatch=*)
        [[ $1 == --sbatch=-* ]] || fail "$1: expected an option, such as --sbatch=--exclusive"
        OPTIONS+=("${1#*=}")
        ;;
      --venv=*) VENV=${1#*=} ;;
      --extras=*) EXTRAS=${1#*=} ;;
      --no-check) NO_CHECK=1 ;;
      --container=*) CONTAINER=${1#*=} ;;
      --mount=*) MOUNTS+=("${1#*=}") ;;
      --out=*) OUT=${1#*=} ;;
      --)
        shift
        train=("$@")
        break
        ;;
      *) fail "unknown option '$1'; see scripts/slurm.sh --help" ;;
    esac
    shift
  done
  [[ $NAME =~ ^[A-Za-z0-9_.-]+$ ]] || fail "--name=$NAME: expected letters, digits, _ . and -"
  number --nodes "$NODES" 1
  number --gpus-per-node "$GPUS" 0
  number --save-seconds "$SAVE" 1
  number --requeues "$REQUEUES" 0
  number --faults "$FAULTS" 0
  [[ -z $CPUS ]] || number --cpus-per-process "$CPUS" 1
  [[ $PER == gpu || $PER == node ]] || fail "--process-per=$PER: expected gpu or node"
  [[ $TIME =~ ^([0-9]+-)?[0-9]+:[0-9]{2}:[0-9]{2}$ ]] ||
    fail "--time=$TIME: expected [days-]hours:minutes:seconds, such as 24:00:00"
  [[ -z $VENV || -z $CONTAINER ]] || fail "--venv and --container: expected one of them"
  if [[ ${#MOUNTS[@]} -gt 0 && -z $CONTAINER ]]; then
    fail "--mount is for --container"
  fi
  if [[ -n $EXTRAS && -z $VENV ]]; then
    fail "--extras=$EXTRAS is installed into --venv=DIR, which is not given; a container has its own"
  fi
  WORKER=$(package internvideo_jax.launch.experiment "--restarts=$RESTARTS" \
    -- ${train[@]+"${train[@]}"}) || exit 2
  if [[ -z $DRY ]] && ! command -v sbatch >/dev/null; then
    fail "sbatch is not installed; run this on a login node of the cluster, or use --dry-run"
  fi
  if [[ -z $NO_CHECK ]]; then
    [[ $PER != gpu || $GPUS -eq 0 ]] || tasks=$GPUS
    found=$(package internvideo_jax.launch.preflight --here "--hosts=$((NODES * tasks))" \
      "--extras=$EXTRAS" ${DRY:+--dry-run} -- ${train[@]+"${train[@]}"}) || exit 2
    wanted=${found##*$'\n'}
  elif [[ -n $EXTRAS ]]; then
    wanted=$(package internvideo_jax.launch.extras "" "$EXTRAS") || exit 2
  fi
  if [[ -n $EXTRAS ]]; then
    [[ -x $VENV/bin/python ]] || step "$PYTHON" -m venv "$VENV"
    step "$VENV/bin/python" -m pip install --quiet --editable "${ROOT}[$wanted]"
  fi

  if [[ -n $DRY ]]; then
    generate
    return
  fi
  OUT=${OUT:-$NAME.sbatch}
  [[ $OUT != -* ]] || OUT=./$OUT
  generate >"$OUT"
  sbatch "$OUT"
}

main "$@"
