"""Reading all of a configuration's text, for tests."""

from earlybert.data_prep.cleaning.counts import Counts
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.sources.registry import Document, read_unit, units


def read_units(config: CorpusConfig) -> list[list[Document]]:
    """The documents of each unit."""
    return [list(read_unit(unit, config, Counts())) for unit in units(config)]


def read_texts(config: CorpusConfig) -> list[str]:
    """The text of all documents."""
    return [document.text for unit in read_units(config) for document in unit]
