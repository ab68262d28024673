# shellcheck shell=bash
# Settings of your cluster: copy this file to slurm/site.sh and change it; every line may stay out.
#
# It is read twice: by you, for sbatch's own variables (`source slurm/site.sh` before sbatch), and by every job.

# Who pays, and where jobs run. More under "INPUT ENVIRONMENT VARIABLES" in sbatch's manual page; sbatch's own command
# line wins over these, these win over the scripts.
#export SBATCH_ACCOUNT=my-project
#export SBATCH_PARTITION=gpu
#export SBATCH_CONSTRAINT=v100
#export SBATCH_GPUS_PER_NODE=4
#export SBATCH_TIMELIMIT=12:00:00

# The environment that earlybert is installed in; otherwise the one active when sbatch was called, else the checkout's
# .venv. The kernels are compiled on the nodes: for V100 by CUDA 12's nvcc, with a GCC that knows C++20 (10 or newer).
#module load cuda/12.6 gcc/12
#source "$HOME/earlybert/.venv/bin/activate"

# A fast disk of each node's own. The corpus is copied there once, and compiled kernels are kept there. Without it the
# corpus is read where it lies, and compiled kernels are kept under TMPDIR (else /tmp).
#export NODE_LOCAL=/local/scratch

# How often a run is tried again that ends by itself without having reached a new checkpoint.
#export MAX_RETRIES=3

# How many minutes ranks wait for one another, for example while rank 0 reads the corpus from a slow disk.
#export DEEPSPEED_TIMEOUT=30

# Which network NCCL takes, where it guesses wrong.
#export NCCL_SOCKET_IFNAME=ib0
#export NCCL_IB_HCA=mlx5
#export NCCL_DEBUG=WARN
