#!/usr/bin/env bash
# Makes docs/examples/: the report of one run, and of a ticket beside a random ticket and dense training. The recipe is
# the quickstart's with fewer steps: about 10 CPU minutes in all. Runs that are done are not repeated.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH
export OMP_NUM_THREADS=1
runs=runs/examples
shorter=(--phase1.steps 400 --phase2.steps 100 --validation.every 50)

python pretrain/run.py --run-dir $runs/ticket "${shorter[@]}"
earlybert ticket random --like $runs/ticket/ticket.json --seed 1 --out $runs/random.json
python pretrain/run.py --run-dir $runs/random-ticket --ticket $runs/random.json "${shorter[@]}"
python pretrain/run.py --run-dir $runs/dense --config quickstart_dense "${shorter[@]}"
earlybert report $runs/ticket --out docs/examples/one-run
earlybert report $runs/ticket $runs/random-ticket $runs/dense --out docs/examples/comparison
