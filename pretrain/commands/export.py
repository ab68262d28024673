"""`earlybert export`: a run's network for Hugging Face transformers."""

from pathlib import Path

from earlybert.core.arguments import ArgumentParser
from earlybert.core.errors import UserError
from earlybert.core.paths import require_place
from earlybert.pretrain.plan.recipe import run_config_path


def main(argv: list[str]) -> None:
    """Writes a run's network and tokenizer for Hugging Face transformers."""
    parser = ArgumentParser("earlybert export", description=main.__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument(
        "--format", choices=("earlybert", "bert"), default="bert", help="narrow, or plain full-shape BERT"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="upload it to this repository of the Hugging Face hub too; a new one is private; the token is that of "
        "HF_TOKEN or of hf auth login",
    )
    arguments = parser.parse_args(argv)
    out: Path = arguments.out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out is {arguments.out}, which exists already; it must be a new or an empty folder")
    require_place(arguments.out, "--out")
    run_config_path(arguments.run_dir)

    # They import PyTorch and transformers, which --help should not wait for. The first one tells DeepSpeed, which
    # transformers may import, that there is no GPU; else it remarks upon it.
    from earlybert.core import devices  # noqa: F401
    from earlybert.pretrain.checkpoint.export import export_checkpoint
    from earlybert.pretrain.checkpoint.model_folder import push, require_pushable

    if arguments.push:
        require_pushable(arguments.push)
    export_checkpoint(arguments.run_dir, arguments.format, out)
    print(f"written to {arguments.out}")
    if arguments.push:
        print(f"uploaded to {push(out, arguments.push)}")
