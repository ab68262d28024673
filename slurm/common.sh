# shellcheck shell=bash
# What the job scripts share. They set EARLYBERT_HOME, the checkout, before they source this file.
set -uo pipefail # not -e: exit statuses are looked at

note() { printf '[%(%F %T)T] %s\n' -1 "$*"; }

fail() { # SENTENCE: ends the job as bad input does
    printf '%s: error: %s\n' "$SLURM_JOB_NAME" "$*" >&2
    exit 2
}

has_earlybert() {
    python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("earlybert") is None)' 2>/dev/null
}

use_site() { # the site's settings, then a Python that has earlybert: the site's, the submitter's or the checkout's
    set +u # module systems and activation scripts read variables that are not set
    # shellcheck source=site.example.sh
    [ ! -f "$EARLYBERT_HOME/slurm/site.sh" ] || . "$EARLYBERT_HOME/slurm/site.sh"
    # shellcheck source=/dev/null
    has_earlybert || [ ! -f "$EARLYBERT_HOME/.venv/bin/activate" ] || . "$EARLYBERT_HOME/.venv/bin/activate"
    set -u
    has_earlybert ||
        fail "python is $(command -v python || echo missing) and has no earlybert; see slurm/site.example.sh"
}

submit() ( # ARGUMENT...: sbatch without this job's own variables, which the new job would take for its own
    for name in "${!SLURM_@}"; do
        [ "$name" = SLURM_CONF ] || unset "$name"
    done
    sbatch --parsable "$@"
)
