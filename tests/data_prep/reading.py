"""Reading all of a configuration's text, for tests."""

from earlybert.data_prep.cleaning.counts import Counts
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.steps.reading import Document, read_unit, work_units


def read_units(config: CorpusConfig) -> list[list[Document]]:
    """The documents of each unit."""
    return [list(read_unit(unit, config, Counts())) for unit in work_units(config)]


def read_texts(config: CorpusConfig) -> list[str]:
    """The text of all documents."""
    return [document.text for unit in read_units(config) for document in unit]
