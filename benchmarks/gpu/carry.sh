#!/usr/bin/env bash
# Collects in .gpu/ what gpu_check.py needs on a machine without a network: x86-64, Python 3.12, with PyTorch,
# transformers, tensorboard and pytest. There: pip install --no-index --no-deps .gpu/wheels/*.whl
# Run it in the root of the repository; PYTHON is one with earlybert installed.
set -euo pipefail
python=${PYTHON:-.venv/bin/python}
out=.gpu
mkdir -p $out/wheels
platforms=()
for version in 2_35 2_34 2_31 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${version}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
fetch() {
    python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        "${platforms[@]}" -d $out/wheels "$@"
}
pinned() { "$python" -c "from importlib.metadata import version; print('$1==' + version('$1'))"; }
# DeepSpeed comes as source; none of its operators is compiled.
ls $out/wheels/deepspeed-*.whl >/dev/null 2>&1 ||
    DS_BUILD_OPS=0 python3 -m pip wheel -q --no-deps -w $out/wheels "$(pinned deepspeed)"
# pydantic takes no older typing-extensions than its own, and that machine may have one.
for name in hjson pydantic annotated-types typing-inspection typing-extensions datasets dill multiprocess jsonargparse; do
    fetch "$(pinned $name)"
done
fetch typeshed-client importlib-resources docstring-parser sentencex backports.zstd
# pydantic goes with one pydantic-core alone.
fetch "$(pinned pydantic-core)"
rm -f $out/wheels/earlybert-*.whl
python3 -m pip wheel -q --no-deps -w $out/wheels .
text=(--source pydocs)
if [ -n "${EARLYBERT_DATA:-}" ]; then text=(--source text --files "[$EARLYBERT_DATA/wikipedia/wiki-*.jsonl.xz]"); fi
[ -d $out/corpus ] || "$(dirname "$python")/earlybert" prepare "${text[@]}" --max_megabytes 25 --lengths '[128, 512]' \
    --vocab_size 8192 --out $out/corpus
du -sm $out
[ "$(du -sm $out | cut -f1)" -lt 64 ] || { echo "gpu-carry: $out has more than 64 MB" >&2; exit 1; }
