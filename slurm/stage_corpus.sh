#!/usr/bin/env bash
# Copies a corpus to the disk of the node it runs on, unless it is there: stage_corpus.sh SOURCE TARGET
set -euo pipefail
source=$1 target=$2

[ ! -d "$target" ] || exit 0
umask 077
mkdir -p "$(dirname "$target")"
needed=$(du -sk "$source" | cut -f 1)
free=$(df -Pk "$(dirname "$target")" | awk 'NR == 2 { print $4 }')
if [ "$needed" -ge "$free" ]; then
    echo "$(hostname): $source needs $((needed / 1024)) MiB, $(dirname "$target") has $((free / 1024)) MiB free" >&2
    exit 1
fi
partial=$(mktemp -d "$target.partial-XXXXXX")
trap 'rm -rf "$partial"' EXIT
cp -rL "$source/." "$partial"
# Another job, or another node where the disk is shared after all, may have been quicker.
mv -T "$partial" "$target" 2>/dev/null || [ -d "$target" ]
