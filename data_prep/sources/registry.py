"""The kinds of source there are. A new one is a file with a `Source` in this folder and one line here."""

from earlybert.core.arguments import nearest
from earlybert.core.errors import UserError
from earlybert.data_prep.sources.books import Books
from earlybert.data_prep.sources.hub import Hub
from earlybert.data_prep.sources.mediawiki import MediaWiki
from earlybert.data_prep.sources.pydocs import PythonDocumentation
from earlybert.data_prep.sources.source import NEEDS, Source, SourceConfig
from earlybert.data_prep.sources.text_files import TextFiles

SOURCES: tuple[Source, ...] = (
    PythonDocumentation(),
    TextFiles(),
    Books(),
    MediaWiki(),
    Hub(),
)


def source_of(config: SourceConfig) -> Source:
    """The kind of source that a checked configuration names."""
    return next(source for source in SOURCES if source.name == config.source)


def check_source(config: SourceConfig, *, others: tuple[str, ...] = ()) -> None:
    """Check that a configuration names a kind of source, or one of the `others`, and what this needs.

    Raises:
        UserError: It does not.
    """
    if config.source in others:
        return
    known = [*(source.name for source in SOURCES), *others]
    if config.source not in known:
        close = nearest(config.source, known)
        hint = f" (did you mean {close}?)" if close else ""
        raise UserError(f"source is {config.source!r}{hint}, but must be one of {', '.join(known)}.")
    needs = source_of(config).needs
    if needs and not (value := getattr(config, needs)):
        state = "not set" if value is None else "empty"
        raise UserError(f"{needs} is {state}, but source {config.source} needs {NEEDS[needs]}.")


def list_sources() -> str:
    """One sentence for help texts that says what each kind of source reads."""
    return "; ".join(f"{source.name}: {source.meaning}" for source in SOURCES) + "."
