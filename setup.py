"""Package metadata. Top-level folders are mapped into the package `earlybert`, so none of them claims a global name."""

from pathlib import Path

from setuptools import setup

FOLDERS = ["core", "data_prep", "kernels", "pretrain", "finetune", "ds_configs"]
ROOT = Path(__file__).parent
# Every folder with an __init__.py in it; `earlybert` itself is the folder `package`.
PACKAGES = sorted(str(path.parent.relative_to(ROOT)) for top in FOLDERS for path in (ROOT / top).rglob("__init__.py"))

setup(
    name="earlybert",
    version="0.1.0",
    description="Pre-trains BERT with early-bird tickets, really narrow, and progressive stacking, on DeepSpeed",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=["earlybert", *(f"earlybert.{folder.replace('/', '.')}" for folder in PACKAGES)],
    package_dir={"earlybert": "package"} | {f"earlybert.{folder}": folder for folder in FOLDERS},
    package_data={
        "earlybert.kernels": ["csrc/*"],
        "earlybert.pretrain.plan": ["recipes/*.yaml"],
        "earlybert.ds_configs": ["*.json"],
    },
    install_requires=[
        # 2.14 is the last release with machine code for V100 (its cu126 build).
        "torch>=2.11,<2.15",
        # The partition layouts that exact LAMB and the canonical checkpoints read are DeepSpeed's own structures.
        "deepspeed>=0.19.8,<0.20",
        "transformers>=5.17,<6",
        "datasets>=5.0,<6",
        "tokenizers>=0.22",
        "sentencepiece>=0.2",
        "safetensors>=0.5",
        "tensorboard>=2.18",
        "matplotlib>=3.10,<4",
        "numpy>=2.0",
        # What the Hugging Face Trainer runs on, and GLUE's scores.
        "accelerate>=1.10,<2",
        "scikit-learn>=1.7,<2",
        "scipy>=1.16,<2",
        "jsonargparse[signatures]>=4.49",
        "pillow>=11",
        "rich>=13",
        "sentencex>=1.0.20,<2",
        "filelock>=3.13",
        # The standard library's from Python 3.14 on.
        "backports.zstd>=1.3",
    ],
    extras_require={
        "near-duplicates": ["rensa>=0.5,<0.6"],
        # earlybert prepare --files https://...
        "web": ["fsspec[http]"],
        # earlybert prepare --dask
        "dask": ["distributed>=2025.1"],
        # trackers of a recipe, beside TensorBoard
        "wandb": ["wandb>=0.31,<1"],
        "trackio": ["trackio>=0.43,<1"],
        "dev": [
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "setuptools>=77",
            "ruff",
            "mypy",
            "types-PyYAML",
            "rensa",
            "distributed",
            "fsspec[http]",
            "wandb",
            "mwparserfromhell",
        ],
        # Compiles the CUDA kernels for V100 and A100, and runs them on a CPU, in tests: no GPU, no CUDA toolkit.
        "sm70-check": [
            "nvidia-cuda-nvrtc-cu12>=12.4,<13; platform_system == 'Linux'",
            "nvidia-cuda-nvcc-cu12>=12.4,<13; platform_system == 'Linux'",
            "nvidia-cuda-runtime-cu12>=12.4,<13; platform_system == 'Linux'",
            "nvidia-cuda-cccl-cu12>=12.4,<13; platform_system == 'Linux'",
            "nvidia-cuda-nvdisasm>=13.2; platform_system == 'Linux'",
        ],
    },
    entry_points={"console_scripts": ["earlybert = earlybert.core.cli:main"]},
)
