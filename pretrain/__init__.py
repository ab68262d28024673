"""Search, ticket, surgery and the training loop."""

import os

# Read when torch loads its thread pool, so it stands here. By default idle threads spin: on a machine that others use
# too, each small operation then waits for a thread that is not running (measured: 6 times the step time on 2 cores).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
