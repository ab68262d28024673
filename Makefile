# Every target sets up its own virtual environment when there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUN_DIR ?= runs/quickstart
# On AMD with AVX512-bf16 a step in bf16 takes three quarters of the time, and AMX is made for bf16. On an Intel with
# AVX512-bf16 alone, whose AMX a virtual machine hides, bf16 took 1.6 times as long. Elsewhere it is slower still.
PRECISION ?= $(shell { grep -sqw amx_bf16 /proc/cpuinfo || \
	{ grep -sq AuthenticAMD /proc/cpuinfo && grep -sqw avx512_bf16 /proc/cpuinfo; }; } && echo bf16 || echo fp32)

.PHONY: quickstart test test-all test-slurm slurm-packages golden lint bench gpu-carry clean

quickstart: $(INSTALLED)
	$(BIN)/python pretrain/run.py --deepspeed ds_configs/lamb.json --precision $(PRECISION) --run-dir "$(RUN_DIR)"
	$(BIN)/earlybert fill-mask "$(RUN_DIR)"

# Two files of tests at a time, each on one core, in the order of tests/conftest.py.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(INSTALLED)
	$(PYTEST)

test-all: $(INSTALLED)
	$(PYTEST) -m "not gpu and not slurm"

# Stores the loss curves anew that the tests compare with; for changes that are meant to change the numbers.
golden: $(INSTALLED)
	$(BIN)/python -m tests.golden.curves

# On four virtual Slurm nodes. Installs no Debian package; needs root or user namespaces.
test-slurm: slurm-packages $(INSTALLED)
	OMP_NUM_THREADS=1 tests/slurm/mini_slurm.sh -n 4 -c 40 -g 8 $(BIN)/python -m pytest -m slurm --timeout 1800 tests/slurm

slurm-packages:
	@missing=$$(tests/slurm/missing_packages.sh); \
	[ -z "$$missing" ] || { echo "make test-slurm: these Debian packages are missing: $$missing" >&2; exit 2; }

# A type checker does not see through package_dir, so it is shown the package as links.
lint: $(INSTALLED)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	rm -rf types && mkdir -p types/earlybert
	for folder in core data_prep kernels pretrain finetune; do ln -s ../../$$folder types/earlybert/$$folder; done
	ln -s ../../package/__init__.py types/earlybert/__init__.py
	MYPYPATH=types:benchmarks:. $(BIN)/mypy --namespace-packages --explicit-package-bases types/earlybert benchmarks tests

bench: quickstart
	$(BIN)/python benchmarks/layouts.py --phase1.global_batch 32 --phase1.micro_batch 16
	$(BIN)/python benchmarks/ticket_vs_random.py $(RUN_DIR)
	$(BIN)/python benchmarks/start_up.py $(RUN_DIR)

# What benchmarks/gpu_check.py needs on a machine with a GPU and without a network, in .gpu/.
gpu-carry: $(INSTALLED)
	PYTHON=$(BIN)/python benchmarks/gpu/carry.sh

$(INSTALLED): setup.py constraints/cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet torch==2.13.0
	DS_BUILD_OPS=0 $(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints/cpu.txt --editable '.[dev,sm70-check]'
	touch $@

clean:
	rm -rf $(VENV) types build *.egg-info .pytest_cache .mypy_cache .ruff_cache
