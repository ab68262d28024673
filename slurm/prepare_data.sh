#!/usr/bin/env bash
# Makes a corpus with many jobs at once: each reads and tokenises one part of the text, a last one merges the parts.
#
#   sbatch slurm/prepare_data.sh CONFIG CORPUS [--FIELD VALUE ...]
#
# CONFIG is a YAML file with options of `earlybert prepare`, CORPUS the new folder for the corpus on a disk that all
# nodes see; more options may follow. `sbatch --array=1-N` sets the number of parts. The merge is element 0 of an array
# of its own, which the first part submits. After a failure the same command again finishes what is missing.
#SBATCH --job-name=prepare-data
#SBATCH --array=1-16
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem-per-cpu=1000M
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.out

# Slurm runs a copy of this script; the path that it was submitted by leads to the checkout. Where Slurm is too busy to
# say, the folder that it was submitted from has to be the checkout.
checkout='s|^ *Command=\(.*\)/slurm/[^/]*\.sh.*|\1|;T;p;q'
: "${EARLYBERT_HOME:=$(scontrol show job "$SLURM_JOB_ID" | sed -n "$checkout")}"
: "${EARLYBERT_HOME:=$SLURM_SUBMIT_DIR}"
. "$EARLYBERT_HOME/slurm/common.sh" || exit 2
[ $# -ge 2 ] || fail "needs a CONFIG and a CORPUS: sbatch slurm/prepare_data.sh CONFIG CORPUS"
use_site
config=$1 corpus=$2
shift 2

part=${SLURM_ARRAY_TASK_ID:-} parts=${SLURM_ARRAY_TASK_COUNT:-}
workers=(--workers "${SLURM_CPUS_PER_TASK:-1}")
if [ "$part" = 0 ]; then
    note "merging the parts of $corpus"
    exec earlybert prepare merge "$corpus" "${workers[@]}"
fi
if [ -z "$part" ] || [ "${SLURM_ARRAY_TASK_MIN:-}-${SLURM_ARRAY_TASK_MAX:-}" != "1-$parts" ]; then
    fail "--array is ${SLURM_ARRAY_TASK_MIN:-none}-${SLURM_ARRAY_TASK_MAX:-none}; it must be 1-N, for N parts"
fi
if [ "$part" = 1 ] && [ -z "${SLURM_RESTART_COUNT:-}" ]; then
    after=(--dependency="afterok:$SLURM_ARRAY_JOB_ID" --kill-on-invalid-dep=yes --array=0)
    here=(--partition="$SLURM_JOB_PARTITION" --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}"
        ${SLURM_JOB_ACCOUNT:+--account="$SLURM_JOB_ACCOUNT"} ${SLURM_JOB_QOS:+--qos="$SLURM_JOB_QOS"})
    merge=("$EARLYBERT_HOME/slurm/prepare_data.sh" "$config" "$corpus")
    if job=$(submit "${after[@]}" "${here[@]}" "${merge[@]}"); then
        note "job $job merges the parts when all are done"
    else
        note "jobs may not submit jobs here; do it yourself: sbatch$(printf ' %q' "${after[@]}" "${merge[@]}")"
    fi
fi
note "part $part of $parts"
exec earlybert prepare --config "$config" --out "$corpus" --part "$part/$parts" "${workers[@]}" "$@"
