"""`earlybert prepare`: makes a corpus, or joins, checks or describes one."""

from pathlib import Path

from earlybert.core.arguments import ArgumentParser, alternatives, parse
from earlybert.core.errors import UserError
from earlybert.core.paths import require_place
from earlybert.core.yaml_files import check_yaml
from earlybert.data_prep.commands.describe import print_summary, show_statistics, verify
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.prepare import merge, prepare, prepare_part
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.data_prep.sources.registry import list_sources

# For a corpus that is there, or of which all parts are.
PURPOSES = {
    "merge": "Make a corpus of which all parts are prepared.",
    "verify": "Check a corpus: every file is there and has the manifest's SHA-256.",
    "stats": "Describe a corpus: counts, lengths, padding, sources; also as a picture.",
}

# Options that say how a corpus is made, not which.
OWN = ("config", "out", "workers", "dask", "part")
DASK = "address of a Dask scheduler, as tcp://HOST:8786: its workers do the work, in place of processes"


def main(argv: list[str]) -> None:
    """Run `earlybert prepare`, or one of its commands for a corpus that is there.

    Args:
        argv: The arguments after `prepare`.

    Raises:
        UserError: An argument, the text or the directory is wrong.
    """
    if not argv or argv[0].startswith("-"):
        _make(argv)
    elif argv[0] in PURPOSES:
        _with_corpus(argv[0], argv[1:])
    else:
        raise UserError(f"unknown command {argv[0]!r} of earlybert prepare{alternatives(argv[0], list(PURPOSES))}")


def _make(argv: list[str]) -> None:
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog="earlybert prepare",
        description="Make a corpus of samples from text. Lists are written --lengths 128 512 or '[128,512]'.",
        epilog=f"Kinds of source. {list_sources()} Commands for a corpus: earlybert prepare merge DIR joins parts; "
        "verify DIR checks a corpus; stats DIR describes one.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_argument("--out", type=Path, required=True, help="new or empty directory for the corpus")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--dask", type=str, help=DASK)
    parser.add_argument("--part", type=str, help="as 3/8: only the third of eight parts of reading and tokenising")
    parser.add_class_arguments(CorpusConfig, as_group=False)
    _check_files(argv)
    options = parse(parser, [_respelt(word) for word in argv])
    config = CorpusConfig(**{name: value for name, value in options.items() if name not in OWN})
    require_place(options.out.parent, "out")
    if options.part is None:
        print_summary(prepare(config, options.out, workers=options.workers, dask=options.dask))
        return
    part, _, parts = options.part.partition("/")
    if not (part.isdecimal() and parts.isdecimal()):
        raise UserError(f"part is {options.part!r}, but must be like 3/8.")
    prepare_part(config, options.out, int(part), int(parts), workers=options.workers, dask=options.dask)


def _check_files(argv: list[str]) -> None:
    """Raises UserError where a file that --config names is not one."""
    parser = ArgumentParser("earlybert prepare", add_help=False)
    parser.add_argument("--config", action="append", default=[], type=Path)
    for file in parser.parse_known_args(argv)[0].config:
        check_yaml(file, CorpusConfig, "a configuration of a corpus", OWN)


def _respelt(word: str) -> str:
    """What is a field in JSON is a column in Parquet: the option for its name has both names."""
    option, equals, value = word.partition("=")
    return f"--text_field{equals}{value}" if option in ("--text_column", "--text-column") else word


def _with_corpus(command: str, argv: list[str]) -> None:
    parser = ArgumentParser(f"earlybert prepare {command}", description=PURPOSES[command])
    parser.add_argument("directory", type=Path, help="directory of the corpus")
    if command == "merge":
        parser.add_argument("--workers", type=int, default=1, help="processes")
        parser.add_argument("--dask", help=DASK)
    if command == "stats":
        parser.add_argument("--png", type=Path, help="where the picture goes; DIR/stats.png if not given")
    options = parser.parse_args(argv)
    if command == "merge":
        print_summary(merge(options.directory, workers=options.workers, dask=options.dask))
    elif command == "verify":
        verify(options.directory)
    else:
        show_statistics(Corpus.open(options.directory), options.png)
