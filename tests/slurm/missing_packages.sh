#!/usr/bin/env bash
# Prints which Debian packages `make test-slurm` needs and does not find, on one line; nothing when all are there.
PATH=$PATH:/usr/sbin:/sbin
missing=()
for need in slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge ip:iproute2 shellcheck:shellcheck; do
    command -v "${need%%:*}" >/dev/null || missing+=("${need#*:}")
done
[ ${#missing[@]} = 0 ] || echo "${missing[*]}"
