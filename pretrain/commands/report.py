"""`earlybert report RUN...`: report.md, report.json and pictures of one run, or of several side by side."""

from pathlib import Path

from earlybert.core.arguments import ArgumentParser
from earlybert.core.paths import require_place
from earlybert.pretrain.plan.recipe import run_config_path


def main(argv: list[str]) -> None:
    """Writes report.md, report.json and pictures of one run, or of several side by side."""
    parser = ArgumentParser("earlybert report", description=main.__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run directory, finished or not")
    parser.add_argument("--out", type=Path, help="default: the run directory; for several runs report-NAME-NAME...")
    arguments = parser.parse_args(argv)
    runs: list[Path] = arguments.runs
    names = [run.resolve().name for run in runs]
    out = arguments.out or (runs[0] if len(runs) == 1 else runs[0].parent / f"report-{'-'.join(names)}")
    require_place(out, "--out")
    for run in runs:
        run_config_path(run)

    # It imports PyTorch and matplotlib, which --help should not wait for.
    from earlybert.pretrain.report.report import write_report

    write_report(runs, out)
    print(f"written to {out / 'report.md'}")
