"""`earlybert report RUN...`: report.md, report.json and pictures of one run, or of several side by side."""

from pathlib import Path

from earlybert.core.arguments import ArgumentParser
from earlybert.core.paths import require_place
from earlybert.pretrain.plan.recipe import run_config_path

# Bytes of a folder's name that file systems take.
LONGEST_NAME = 255


def main(argv: list[str]) -> None:
    """Writes report.md, report.json and pictures of one run, or of several side by side."""
    parser = ArgumentParser("earlybert report", description=main.__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run directory, finished or not")
    parser.add_argument("--out", type=Path, help="default: the run directory; for several runs report-NAME-NAME...")
    arguments = parser.parse_args(argv)
    runs: list[Path] = arguments.runs
    out = arguments.out or (runs[0] if len(runs) == 1 else runs[0].parent / report_name(runs))
    require_place(out, "--out")
    for run in runs:
        run_config_path(run)

    # It imports PyTorch and matplotlib, which --help should not wait for.
    from earlybert.pretrain.report.report import write_report

    write_report(runs, out)
    print(f"written to {out / 'report.md'}")


def report_name(runs: list[Path]) -> str:
    """Of the folder for a report of several runs, cut where it would be too long."""
    name = "-".join(["report", *(run.resolve().name for run in runs)])
    return name.encode()[:LONGEST_NAME].decode(errors="ignore")
