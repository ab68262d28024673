#!/usr/bin/env bash
# Fine-tunes and scores a model on the GPUs of one node, by default one.
#
#   sbatch slurm/finetune.sh ARGUMENT...
#   sbatch --gpus-per-node=4 --cpus-per-task=20 slurm/finetune.sh ARGUMENT...
#
# The arguments are those of `earlybert finetune`. A requeued job computes what is missing.
#SBATCH --job-name=finetune
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=5
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

# Slurm runs a copy of this script; the path that it was submitted by leads to the checkout. Where Slurm is too busy to
# say, the folder that it was submitted from has to be the checkout.
checkout='s|^ *Command=\(.*\)/slurm/[^/]*\.sh.*|\1|;T;p;q'
: "${EARLYBERT_HOME:=$(scontrol show job "$SLURM_JOB_ID" | sed -n "$checkout")}"
: "${EARLYBERT_HOME:=$SLURM_SUBMIT_DIR}"
. "$EARLYBERT_HOME/slurm/common.sh" || exit 2
use_site
ranks=${SLURM_GPUS_PER_NODE:-1} # may be written v100:4
ranks=${ranks##*:}
note "earlybert finetune $* ($ranks ranks)"
[ "$ranks" -gt 1 ] || exec earlybert finetune "$@"
exec torchrun --standalone --nproc_per_node "$ranks" --no-python earlybert finetune "$@"
