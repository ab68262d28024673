"""One work unit on disk: its cleaned documents as sentences, and as tokens. Each step is done or not begun."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from earlybert.core.files import read_json, whole_file, write_json
from earlybert.data_prep.cleaning.counts import Counts
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.job_progress import tell
from earlybert.data_prep.steps.reading import WorkUnit, read_unit
from earlybert.data_prep.tokens.arrays import map_array
from earlybert.data_prep.tokens.sentences import read_sentences, split_sentences
from earlybert.data_prep.tokens.tokenizer import Encoder


class UnitFiles:
    """The text of one unit, in a folder whose name stands for what the unit reads.

    For each document there are `digests` (uint64 [documents, 2]), `copies` (uint16), `words` and `characters` (uint32)
    and, if near duplicates are looked for, `bands` (uint64 [documents, bands]); its sentences, one a line with a blank
    line after each document; and what was dropped.
    """

    def __init__(self, folder: Path, unit: WorkUnit) -> None:
        """Name the files; nothing is touched."""
        self.unit = unit
        self.folder = folder / unit.key
        self.sentences = self.folder / "sentences.txt"
        # Written last, so what it stands for is complete.
        self._read = self.folder / "read.json"

    @property
    def is_read(self) -> bool:
        return self._read.is_file()

    def array(self, name: str, dtype: npt.DTypeLike) -> np.ndarray:
        """One of the arrays, memory-mapped and flat."""
        return map_array(self.folder / f"{name}.bin", dtype)

    @property
    def digests(self) -> np.ndarray:
        """uint64 [documents, 2]."""
        return self.array("digests", np.uint64).reshape(-1, 2)

    @property
    def bands(self) -> np.ndarray:
        """uint64 [documents, bands]."""
        documents = len(self.digests)
        return self.array("bands", np.uint64).reshape(documents, -1 if documents else 0)

    def counts(self) -> Counts:
        """What was dropped in reading."""
        return Counts.from_dict(read_json(self._read))

    def sentences_of(self, documents: np.ndarray | None = None) -> Iterator[list[str]]:
        """The sentences of some documents or of all, a document at a time; `documents` has their indices, ascending."""
        wanted = iter(range(len(self.digests)) if documents is None else documents.tolist())
        following = next(wanted, None)
        with self.sentences.open(encoding="utf-8", newline="\n") as file:
            for number, sentences in enumerate(_documents(file)):
                if following is None:
                    return
                if number == following:
                    yield sentences
                    following = next(wanted, None)

    def read(self, config: CorpusConfig) -> None:
        """Read and clean the unit, and split it into sentences."""
        counts = Counts()
        with ExitStack() as stack:
            sentences = _open(stack, self.sentences)
            digests, copies, words, characters, bands = (
                _open(stack, self.folder / f"{name}.bin")
                for name in ("digests", "copies", "words", "characters", "bands")
            )
            for document in read_unit(self.unit, config, counts):
                lines = split_sentences(document.text, self.unit.source.language)
                if not lines:
                    counts.drop("document: no sentence", document.text)
                    continue
                text = "\n".join(lines)
                sentences.write(text.encode() + b"\n\n")
                digests.write(document.digest)
                copies.write(document.copies.to_bytes(2, "little"))
                # White space is single, so that words are what it parts.
                words.write((text.count(" ") + len(lines)).to_bytes(4, "little"))
                characters.write(len(text).to_bytes(4, "little"))
                if document.bands is not None:
                    bands.write(document.bands.tobytes())
        write_json(self._read, counts.as_dict())


class UnitTokens:
    """The tokens of one unit, in a folder of a folder whose name stands for the vocabulary.

    There are `tokens`, `sentence_tokens` (uint32 for each sentence) and `document_sentences` (uint32 for each
    document).
    """

    def __init__(self, folder: Path, text: UnitFiles) -> None:
        """Name the files; nothing is touched."""
        self.text, self.folder = text, folder / text.unit.key
        # Written last, so what it stands for is complete.
        self._done = self.folder / "tokenised.json"

    @property
    def is_done(self) -> bool:
        return self._done.is_file()

    def array(self, name: str, dtype: npt.DTypeLike) -> np.ndarray:
        """One of the arrays, memory-mapped and flat."""
        return map_array(self.folder / f"{name}.bin", dtype)

    def make(self, encoder: Encoder, dtype: npt.DTypeLike) -> None:
        """Encode the sentences; a sentence or document may well have no token."""
        with ExitStack() as stack:
            tokens, sentence_tokens, document_sentences = (
                _open(stack, self.folder / f"{name}.bin")
                for name in ("tokens", "sentence_tokens", "document_sentences")
            )
            size, seen = max(1, self.text.sentences.stat().st_size), 0
            for sentences, ended_documents in read_sentences(self.text.sentences):
                ids, lengths = encoder.encode(sentences, dtype)
                seen += sum(len(sentence.encode()) + 1 for sentence in sentences)
                tell(seen / size)
                tokens.write(ids.tobytes())
                sentence_tokens.write(lengths.astype(np.uint32).tobytes())
                document_sentences.write(np.array(ended_documents, np.uint32).tobytes())
        write_json(self._done, {})


def _documents(file: Iterable[str]) -> Iterator[list[str]]:
    document: list[str] = []
    for line in file:
        if line == "\n":
            yield document
            document = []
        else:
            document.append(line[:-1])


def _open(stack: ExitStack, path: Path) -> IO[bytes]:
    # The file is closed before the context that names it ends.
    return stack.enter_context(stack.enter_context(whole_file(path)).open("wb"))
