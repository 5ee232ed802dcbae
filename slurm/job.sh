# shellcheck shell=bash
# What train.sbatch does, step by step: Ray over the allocation, the driver beside it, the end of both.

readonly STOPPED=75 TEARDOWN_S=60 # main_flowrl's exit status when asked to stop; time to end and be requeued
stop_asked='' torn_down=''
declare -A step_of=() # process id of an srun -> what it runs

say() { echo "$(date '+%F %T') $*"; }

fail() {
  say "error: $*"
  say "logs: $FLOWRL_ATTEMPT"
  exit 1
}

on_node() { # NODE COMMAND...: one task there, beside the job's other steps
  local container=()
  [ -z "$SITE_CONTAINER_IMAGE" ] || container+=("--container-image=$SITE_CONTAINER_IMAGE")
  [ -z "$SITE_CONTAINER_MOUNTS" ] || container+=("--container-mounts=$SITE_CONTAINER_MOUNTS")
  # exec: the srun itself is what gets a signal and is waited for
  exec srun --overlap --nodes=1 --ntasks=1 --nodelist="$1" --chdir="$FLOWRL_ROOT" --kill-on-bad-exit=1 \
    "${container[@]}" "${@:2}"
}

job_field() { scontrol --oneliner show job "$SLURM_JOB_ID" | grep -oP "(?<=\b$1=)\S+"; }

prepare_attempt() {
  export FLOWRL_ATTEMPT=${FLOWRL_LOGS:-$FLOWRL_ROOT/outputs/slurm}/$SLURM_JOB_ID/attempt_$((${SLURM_RESTART_COUNT:-0} + 1))
  mkdir -p "$FLOWRL_ATTEMPT" || exit 1
  export PYTHONPATH=$FLOWRL_ROOT${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_ON_NODE:-1} # srun no longer takes it from sbatch
  export RAY_CPUS_PER_NODE=${RAY_CPUS_PER_NODE:-$SRUN_CPUS_PER_TASK} RAY_GPUS_PER_NODE=${RAY_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}}
  # Without a token of its own a Ray cluster takes anybody's work; one left in ~/.ray would be used by halves.
  RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
  VLLM_API_KEY=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n') # verl reaches the servers through Ray; nobody needs it
  export VLLM_API_KEY
  export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # the default outlasts KillWait
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  say "job $SLURM_JOB_ID, attempt $((${SLURM_RESTART_COUNT:-0} + 1)), nodes ${nodes[*]}, logs in $FLOWRL_ATTEMPT"
}

start_ray() {
  local address node
  address=$(on_node "${nodes[0]}" python "$FLOWRL_ROOT/slurm/node_address.py" "$SLURM_JOB_ID") ||
    fail "node ${nodes[0]}: no address for Ray's head; it needs python and a free port"
  export RAY_ADDRESS=${address/ /:}
  join_deadline=$((SECONDS + SITE_JOIN_S)) # by the clock: one ray status takes seconds
  start_node "${nodes[0]}" head
  until ray status >/dev/null 2>&1; do check_join; done
  for node in "${nodes[@]:1}"; do start_node "$node" worker; done
}

start_node() { # NODE ROLE
  # shellcheck disable=SC2016  # expanded there
  on_node "$1" bash -c '. "$FLOWRL_ROOT/slurm/site.sh" && exec python "$FLOWRL_ROOT/slurm/ray_node.py" "$0"' "$2" >"$FLOWRL_ATTEMPT/ray_$1.log" 2>&1 &
  step_of[$!]="Ray on node $1"
}

wait_for_ray() {
  until [ "$(ray status 2>/dev/null | sed -n '/^Active:/,/^Pending:/p' | grep -c node_)" -ge ${#nodes[@]} ]; do
    check_join
  done
  say "Ray runs on ${#nodes[@]} node(s), head ${nodes[0]} at $RAY_ADDRESS"
}

check_ray() { # ends the job if Ray has died on a node
  local process name
  for process in "${!step_of[@]}"; do
    name=${step_of[$process]}
    kill -0 "$process" 2>/dev/null || fail "$name ended: $(last_words "${name##* }")"
  done
}

check_join() { # a second's rest; ends the job if Ray has died on a node, or time is up
  local node missing=()
  check_ray
  if [ "$SECONDS" -ge "$join_deadline" ]; then
    for node in "${nodes[@]}"; do
      grep -qs 'Ray runtime started' "$FLOWRL_ATTEMPT/ray_$node.log" || missing+=("$node")
    done
    fail "node ${missing[*]:-(unknown)} didn't join Ray at $RAY_ADDRESS within $SITE_JOIN_S s (SITE_JOIN_S)"
  fi
  sleep 1
}

last_words() { # NODE: what Ray said there, not what SLURM says of its end
  grep -Ev '^\s*$|^(srun|slurmstepd)' "$FLOWRL_ATTEMPT/ray_$1.log" | tail -n 1
}

train() { # OVERRIDES...: run the driver; ends the job
  local deadline=null driver status
  deadline=$(date -d "$(job_field EndTime)" +%s 2>/dev/null) && deadline=$((deadline - TEARDOWN_S)) || deadline=null
  # The driver connects to this Ray cluster, so it must not say how large one of its own would be.
  on_node "${nodes[0]}" python -m "${FLOWRL_MODULE:-recipe.flowrl.main_flowrl}" "$@" \
    "stop_file=$FLOWRL_ATTEMPT/stop" "stop_deadline=$deadline" \
    "trainer.nnodes=${#nodes[@]}" "trainer.n_gpus_per_node=$RAY_GPUS_PER_NODE" \
    ++ray_kwargs.ray_init.num_cpus=null ++ray_kwargs.ray_init.num_gpus=null \
    ++ray_kwargs.ray_init.object_store_memory=null &
  driver=$!
  while kill -0 "$driver" 2>/dev/null; do
    check_ray
    if [ -n "$stop_asked" ] && [ "$deadline" != null ] && [ "$(date +%s)" -ge "$deadline" ]; then
      requeue "the step didn't end before the time limit; what came after the last checkpoint is lost"
    fi
    sleep 1
  done
  wait "$driver"
  status=$?
  case $status in
    0) say "training has finished" && exit 0 ;;
    "$STOPPED") requeue "the run is saved" ;;
    *) say "error: the driver ended with status $status; logs: $FLOWRL_ATTEMPT" && exit "$status" ;;
  esac
}

ask_to_stop() { # SIGNAL
  # A cancelled job gets SIGTERM as well, and isn't to come back.
  if [ "$1" = TERM ] && [ "$(job_field JobState)" != RUNNING ]; then
    say "the job is being cancelled"
    exit 143
  fi
  stop_asked=$1
  touch "$FLOWRL_ATTEMPT/stop"
  say "$1: the trainer is asked to finish its step, save and stop; then the job is requeued"
}

requeue() { # WHY: ends the job
  say "$1: the job is requeued"
  teardown
  scontrol requeue "$SLURM_JOB_ID" || fail "scontrol can't requeue the job: submit it again, it continues by itself"
  sleep "$TEARDOWN_S" # SLURM ends this script
  fail "SLURM hasn't requeued the job"
}

teardown() { # ends all steps; safe to call twice
  local process alive deadline=$((SECONDS + 20))
  [ -z "$torn_down" ] || return 0
  torn_down=1
  trap '' USR1 TERM
  # To the steps, not to this shell. A signal to srun itself would kill its step at once.
  scancel --signal=TERM "$SLURM_JOB_ID" 2>/dev/null
  while [ "$SECONDS" -lt "$deadline" ]; do
    alive=''
    for process in $(jobs -p); do kill -0 "$process" 2>/dev/null && alive=1; done
    [ -n "$alive" ] || break
    sleep 1
  done
  # shellcheck disable=SC2046  # a word for each
  [ -z "$alive" ] || kill $(jobs -p) 2>/dev/null
  wait
  say "down"
}
