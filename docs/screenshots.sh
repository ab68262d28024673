#!/usr/bin/env bash
# Photographs TensorBoard on finished runs with a headless browser: docs/images/tensorboard-*.png.
#
#   docs/screenshots.sh [LOGDIR]
#
# LOGDIR is runs/examples (docs/example_reports.sh makes it) if not given. Needs Debian's package chromium.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH
command -v chromium >/dev/null || {
    echo "docs/screenshots.sh: chromium is missing (Debian package chromium)" >&2
    exit 2
}

port=6411
tensorboard --logdir "${1:-runs/examples}" --port $port >/dev/null 2>&1 &
server=$!
trap 'kill $server' EXIT
until (exec 3<>/dev/tcp/localhost/$port) 2>/dev/null; do
    kill -0 $server || exit 1
    sleep 0.5
done
sleep 10 # it reads the event files in the background

photograph() { # NAME HEIGHT PAGE: seconds are the page's own; a page that was not drawn in time makes a small file
    local file=docs/images/tensorboard-$1.png
    for _ in {1..5}; do
        chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --virtual-time-budget=60000 \
            --window-size="1600,$2" --screenshot="$PWD/$file" "http://localhost:$port/$3" >/dev/null 2>&1
        python - "$file" <<'PYTHON'
import sys
from PIL import Image

Image.open(sys.argv[1]).convert("RGB").quantize(96).save(sys.argv[1], optimize=True)
PYTHON
        if [ "$(stat -c %s "$file")" -gt 35000 ]; then
            echo "$file"
            return
        fi
    done
    echo "docs/screenshots.sh: TensorBoard did not draw $3 in five attempts" >&2
    exit 1
}

mkdir -p docs/images
photograph curves 1100 '#scalars&tagFilter=^loss/(train|validation), masked|^optimizer/|^speed/(tokens|util)'
photograph search 1000 '?tagFilter=^mask_distance$|^ticket$|^search/coefficients#timeseries'
photograph time 760 '#scalars&tagFilter=^time/'
photograph trust_ratios 760 '#scalars&tagFilter=trust_ratio/layers.0'
photograph text 1100 '#text'
