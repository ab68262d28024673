#!/usr/bin/env bash
# One rank, as srun starts it: tells the command its place among the ranks, and where its node keeps compiled kernels.
set -euo pipefail

trap '' USR1 # until the trainer has a handler for it; what is ignored stays ignored through exec

export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE

# On a shared disk all ranks of all nodes would compile the same files at the same time.
cache=${NODE_LOCAL:-${TMPDIR:-/tmp}}/earlybert-$(id -un)
(umask 077 && mkdir -p "$cache") || true # a TMPDIR of the login node may not be here
if [ ! -O "$cache" ]; then
    echo "$(hostname): error: $cache is no folder of yours; set NODE_LOCAL in slurm/site.sh to one" >&2
    exit 2
fi
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$cache/torch_extensions}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$cache/inductor}
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$cache/triton}
export CUDA_CACHE_PATH=${CUDA_CACHE_PATH:-$cache/cuda}

exec "$@"
