#!/usr/bin/env bash
# Pre-trains BERT-Base the EarlyBERT way, from the first step to DONE, through time limits, preemption and dead nodes.
#
#   sbatch slurm/pretrain_base.sh --data CORPUS [--run-dir DIR] [--FIELD VALUE ...]
#
# Every argument is one of pretrain/run.py's. Account, partition and the like: slurm/site.example.sh. One rank per GPU;
# nodes that are not like a DGX-1 need one number, e.g. sbatch --gpus-per-node=4 ..., and any number of them will do.
#
# The range lets a run that lost a node go on with those that are left. There is no --ntasks-per-node on purpose: Slurm
# would take the tasks of the smallest number of nodes for all there are, and never give more nodes than that.
#SBATCH --job-name=pretrain-base
#SBATCH --nodes=1-2
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

# Slurm runs a copy of this script; the path that it was submitted by leads to the checkout. Where Slurm is too busy to
# say, the folder that it was submitted from has to be the checkout.
checkout='s|^ *Command=\(.*\)/slurm/[^/]*\.sh.*|\1|;T;p;q'
: "${EARLYBERT_HOME:=$(scontrol show job "$SLURM_JOB_ID" | sed -n "$checkout")}"
: "${EARLYBERT_HOME:=$SLURM_SUBMIT_DIR}"
. "$EARLYBERT_HOME/slurm/pretraining.sh" || exit 2
pretrain bert_base "$@"
