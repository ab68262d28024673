# shellcheck shell=bash
# One attempt at a pre-training run: a rank per GPU under srun, and what is done when they end.
#
# The run directory holds all that lasts: checkpoints, DONE, which job has the run (slurm_job), and how many attempts in
# a row failed without a new checkpoint (slurm_failures). Whether training is done is told by DONE, never by srun's
# status, which is 0 for ranks that stopped as asked, too.

. "$EARLYBERT_HOME/slurm/common.sh"

# Left over where sbatch was called inside another job: srun would bind the ranks to that job's CPUs, and fail.
# The same for what srun would take for the ranks' memory and layout.
unset "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_BIND@}" "${!SLURM_MEM_PER_@}" SLURM_NTASKS_PER_GPU SLURM_NTASKS_PER_TRES \
    SLURM_GPUS_PER_TASK SLURM_CPUS_PER_GPU SLURM_TRES_PER_TASK

warned=0 # whether the time limit is near
signalled=0 # whether a signal has ended a wait
status=0 # how the last step ended
# Plain assignments only: bash can lose a handler with more in it when two signals come together.
trap 'warned=1 signalled=1' USR1
trap 'signalled=1' TERM # ranks are told by Slurm itself; this script stays to say how it ended

option() { # NAME DEFAULT ARGUMENT...: the value of the last --NAME, written as run.py takes it
    local name=--$1 value=$2 given
    shift 2
    while [ $# -gt 0 ]; do
        given=${1%%=*}
        if [ "${given//_/-}" = "$name" ]; then
            case $1 in *=*) value=${1#*=} ;; *) value=${2-} ;; esac
        fi
        shift
    done
    printf '%s\n' "$value"
}

newest_checkpoint() {
    local path newest="no checkpoint"
    for path in "$run_dir"/checkpoints/step-*; do
        [ ! -d "$path" ] || newest=${path##*/}
    done
    printf '%s\n' "$newest"
}

job_state() { # of this job; a controller that is just being restarted gets five minutes, then it is empty
    for _ in {1..50}; do
        squeue -h -j "$SLURM_JOB_ID" -o %T && return
        sleep 6
    done
}

claim_run() { # two jobs in one run directory would destroy each other's checkpoints
    local owner
    owner=$(cat "$run_dir/slurm_job" 2>/dev/null)
    if [ -n "$owner" ] && [ "$owner" != "$SLURM_JOB_ID" ] && [ -n "$(squeue -h -j "$owner" 2>/dev/null)" ]; then
        fail "job $owner has the run in $run_dir; scancel it first, or choose another --run-dir"
    fi
    echo "$SLURM_JOB_ID" >"$run_dir/slurm_job" || fail "$run_dir cannot be written to; choose another --run-dir"
}

warn_step() { # PROCESS: USR1 for all its ranks, again and again, because those that are still starting ignore it
    while kill -USR1 "$1" 2>/dev/null; do
        sleep 10
    done
}

run_step() { # ARGUMENT...: srun, handing on the warning; sets `status`
    local step messenger=
    # A job submitted with --export=NONE, or with a list, would otherwise hand its ranks no MASTER_ADDR and no PATH.
    # --mem=0 is all memory that the job has.
    srun --nodes="$SLURM_JOB_NUM_NODES" --mem=0 --export=ALL "$@" &
    step=$!
    while :; do
        signalled=0
        if [ "$warned" = 1 ] && [ -z "$messenger" ]; then
            note "the time limit is near: the ranks are asked to write a checkpoint and stop"
            warn_step "$step" &
            messenger=$!
        fi
        wait "$step"
        status=$?
        [ "$signalled" = 1 ] || break # else it may be the wait that has ended, not the step
    done
    [ -z "$messenger" ] || kill "$messenger" 2>/dev/null
}

stage_corpus() { # CORPUS: copies it to the nodes' own disks; sets `staged` to where, if that worked
    local manifest target
    staged=
    [ -n "${NODE_LOCAL:-}" ] && [ -f "$1/manifest.json" ] || return
    manifest=$(sha256sum <"$1/manifest.json")
    target=$NODE_LOCAL/earlybert-$(id -un)/corpora/${manifest:0:16}
    note "copying $1 to $target on every node that does not have it"
    run_step --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        bash "$EARLYBERT_HOME/slurm/stage_corpus.sh" "$1" "$target"
    if [ "$status" = 0 ]; then
        staged=$target
    else
        note "could not copy it everywhere; it is read from its shared folder"
    fi
}

train() { # CONFIG ARGUMENT...: all ranks, until they end
    local config=$1 gpus ranks_per_node cpus_per_rank
    shift
    gpus=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}} # may be written v100:8
    gpus=${gpus##*:}
    ranks_per_node=${SLURM_NTASKS_PER_NODE:-$gpus}
    [ "$ranks_per_node" -ge "$gpus" ] ||
        fail "SLURM_NTASKS_PER_NODE is $ranks_per_node for $gpus GPUs a node; leave --ntasks-per-node out" \
            "(inside another job, unset SLURM_NTASKS_PER_NODE before sbatch)"
    [ "$ranks_per_node" -gt 0 ] || ranks_per_node=1
    # More than the node has given is left over from another job, too.
    [ $((ranks_per_node * ${SLURM_CPUS_PER_TASK:-0})) -le "$SLURM_CPUS_ON_NODE" ] || unset SLURM_CPUS_PER_TASK
    cpus_per_rank=${SLURM_CPUS_PER_TASK:-$((SLURM_CPUS_ON_NODE / ranks_per_node))}
    [ "$cpus_per_rank" -gt 0 ] || cpus_per_rank=1
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    [ -n "$MASTER_ADDR" ] || fail "SLURM_JOB_NODELIST is $SLURM_JOB_NODELIST, in which scontrol finds no nodes"
    # Another port for every attempt, below those that the kernel hands out.
    MASTER_PORT=$((20000 + (SLURM_JOB_ID + ${SLURM_RESTART_COUNT:-0}) % 10000))
    export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus_per_rank}
    note "$SLURM_JOB_NODELIST with $ranks_per_node ranks each; newest: $(newest_checkpoint)"
    # Left alone for a while, the other ranks fail by themselves, which keeps exit status 2 apart from a rank's crash.
    # block:block puts rank 0 on the first node, and neighbours on the same socket as their GPUs mostly are; Slurm's
    # default changes the socket with every rank.
    run_step --ntasks=$((SLURM_JOB_NUM_NODES * ranks_per_node)) --ntasks-per-node="$ranks_per_node" \
        --cpus-per-task="$cpus_per_rank" --distribution=block:block --kill-on-bad-exit=0 --wait=60 --label \
        bash "$EARLYBERT_HOME/slurm/rank.sh" \
        python -u "$EARLYBERT_HOME/pretrain/run.py" \
        --config "$config" --run-dir "$run_dir" "$@" ${staged:+--data "$staged"}
}

count_failures() { # NEWEST-BEFORE NEWEST-NOW: ends the job where going on would not help
    local failures
    failures=$(cat "$run_dir/slurm_failures" 2>/dev/null)
    if [ "$1" != "$2" ]; then
        failures=0
    elif [ "$status" = 2 ] && [ "$2" = "no checkpoint" ]; then # later it may be trouble of the disk that passes
        note "the input is wrong; it is not tried again"
        exit 2
    elif [ "$status" != 0 ] || [ "$warned" = 1 ]; then
        failures=$((${failures:-0} + 1))
    fi
    if [ "${failures:-0}" -gt "${MAX_RETRIES:-3}" ]; then
        rm -f "$run_dir/slurm_failures"
        note "giving up: $failures attempts in a row ended without a new checkpoint"
        exit $((status == 0 ? 1 : status))
    fi
    echo "${failures:-0}" >"$run_dir/slurm_failures"
}

go_on_later() { # SCRIPT ARGUMENT...: this job again, or one that takes its place
    local successor log
    if scontrol requeue "$SLURM_JOB_ID"; then
        note "requeued"
        exit 0
    fi
    log=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *StdOut=//p')
    successor=$(submit --dependency="afterany:$SLURM_JOB_ID" --job-name="$SLURM_JOB_NAME" --output="$log" \
        --nodes="$SLURM_JOB_NUM_NODES" --time="$(squeue -h -j "$SLURM_JOB_ID" -o %l)" \
        --partition="$SLURM_JOB_PARTITION" ${SLURM_JOB_ACCOUNT:+--account="$SLURM_JOB_ACCOUNT"} \
        ${SLURM_JOB_QOS:+--qos="$SLURM_JOB_QOS"} ${SLURM_GPUS_PER_NODE:+--gpus-per-node="$SLURM_GPUS_PER_NODE"} \
        ${SLURM_NTASKS_PER_NODE:+--ntasks-per-node="$SLURM_NTASKS_PER_NODE"} \
        ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} "$@") || return
    note "this job may not be requeued; job $successor resumes the run after it"
    exit 0
}

pretrain() { # RECIPE ARGUMENT...: of the script's recipe and sbatch's arguments
    local recipe=$1 config name before state
    shift
    use_site
    config=$(option config "$recipe" "$@")
    name=${config##*/}
    run_dir=$(option run-dir "runs/${name%.*}" "$@")
    mkdir -p "$run_dir" || fail "$run_dir cannot be made; choose another --run-dir"
    if [ -e "$run_dir/DONE" ]; then
        note "$run_dir is done already"
        exit 0
    fi
    claim_run
    before=$(newest_checkpoint)
    stage_corpus "$(option data "" "$@")"
    [ "$warned" = 1 ] || train "$config" "$@"
    if [ -e "$run_dir/DONE" ]; then
        note "$run_dir is done"
        exit 0
    fi
    state=$(job_state)
    note "the ranks ended with status $status, the job is ${state:-of unknown state}; newest: $(newest_checkpoint)"
    # Cancelled, or on its way back into the queue. To requeue it nevertheless would raise it from the dead.
    case $state in RUNNING | SIGNALING | "") ;; *) exit "$status" ;; esac
    count_failures "$before" "$(newest_checkpoint)"
    go_on_later "$EARLYBERT_HOME/slurm/pretrain_${recipe#bert_}.sh" "$@"
    exit 1
}
