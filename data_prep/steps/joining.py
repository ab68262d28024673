"""From the tokens of all units to the text of each split: duplicates left out, documents of one split together."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from earlybert.core.files import whole_folder, write_json
from earlybert.core.progress import progress
from earlybert.core.randomness import uniform
from earlybert.data_prep.cleaning.counts import EXAMPLE_CHARACTERS, EXAMPLES, Counts, Rule
from earlybert.data_prep.cleaning.duplicates import duplicates
from earlybert.data_prep.cleaning.near_duplicates import near_duplicates
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.steps.unit_files import UnitFiles, UnitTokens
from earlybert.data_prep.tokens.text import COPIES, DOCUMENTS, SENTENCES, TOKENS

SPLITS = ("train", "validation")
COUNTS = "counts.json"


def held_out(digests: np.ndarray, config: CorpusConfig) -> np.ndarray:
    """Which documents are for validation: decided for each by a random number that depends on its text and the seed.

    So equal documents stand on one side, and no document moves because of others.

    Args:
        digests: uint64 [documents, 2].
        config: Its `validation_fraction` is the chance of each document.

    Returns:
        bool [documents].
    """
    return uniform(config.seed, "validation", digests) < config.validation_fraction


def join(tokenised: Sequence[UnitTokens], config: CorpusConfig, dtype: npt.DTypeLike, folder: Path) -> None:
    """Write the text of every split to `folder`, and what it has and lacks to `counts.json`; complete or absent.

    Args:
        tokenised: All units in order.
        config: The configuration.
        dtype: Of the tokens.
        folder: Gets a folder for each split, for `TokenisedText.open`.
    """
    rules = Counts()
    units = [tokens.text for tokens in tokenised]
    for unit in units:
        rules.add(unit.counts())
    dropped = _find_duplicates(units, config, rules)
    with whole_folder(folder) as temporary, progress("Joining", sum(unit.unit.bytes for unit in units)) as advance:
        writers = {split: _SplitWriter(temporary / split) for split in SPLITS}
        with ExitStack() as stack:
            for writer in writers.values():
                stack.enter_context(writer)
            for tokens, drop in zip(tokenised, dropped, strict=True):
                document = _UnitDocuments(tokens, dtype)
                validates = held_out(tokens.text.digests, config)
                keep = ~drop & (document.tokens > 0)
                writers["train"].add(document, keep & ~validates, document.copies * config.duplicates)
                # What a weight below 1 left out is in no unit. Of the rest validation sees every document once.
                writers["validation"].add(document, keep & validates, np.ones_like(document.copies))
                advance(tokens.text.unit.bytes)
        counts = {split: writer.counts for split, writer in writers.items()}
        write_json(temporary / COUNTS, {"splits": counts, "rules": rules.as_dict()})


def _find_duplicates(units: Sequence[UnitFiles], config: CorpusConfig, rules: Counts) -> list[np.ndarray]:
    """For each unit which documents repeat an earlier one; `rules` is told."""
    dropped = duplicates([unit.digests for unit in units])
    _count(rules, "document: exact duplicate", units, dropped)
    if not config.cleaning.near_duplicates:
        return dropped
    near = near_duplicates([unit.bands for unit in units], dropped)
    _count(rules, "document: near duplicate", units, near)
    return [first | second for first, second in zip(dropped, near, strict=True)]


def _count(rules: Counts, name: str, units: Sequence[UnitFiles], dropped: Sequence[np.ndarray]) -> None:
    rule = Rule()
    for unit, drop in zip(units, dropped, strict=True):
        rule.dropped += int(drop.sum())
        rule.characters += int(unit.array("characters", np.uint32)[drop].sum())
        if drop.any() and (missing := EXAMPLES - len(rule.examples)):
            texts = [sentences[0] for sentences in unit.sentences_of(np.flatnonzero(drop)[:missing])]
            rule.examples += [text[:EXAMPLE_CHARACTERS] for text in texts]
    if rule.dropped:
        rules.rules[name] = rule


def _bounds(sizes: np.ndarray) -> np.ndarray:
    """int64 [sizes + 1], where each begins and the last ends."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


class _UnitDocuments:
    """The arrays of one tokenised unit, sentences without a token left out."""

    def __init__(self, tokens: UnitTokens, dtype: npt.DTypeLike) -> None:
        text = tokens.text
        self.source = text.unit.source.name
        self.words, self.copies = text.array("words", np.uint32), text.array("copies", np.uint16)
        self.all_tokens = tokens.array("tokens", dtype)
        sentence_tokens = tokens.array("sentence_tokens", np.uint32)
        self.sentence_tokens = sentence_tokens[sentence_tokens > 0]
        self.sentence_bounds = _bounds(sentence_tokens > 0)[_bounds(tokens.array("document_sentences", np.uint32))]
        self.token_bounds = _bounds(self.sentence_tokens)[self.sentence_bounds]
        self.sentences, self.tokens = np.diff(self.sentence_bounds), np.diff(self.token_bounds)


class _SplitWriter:
    """Appends documents to the text of one split."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._files = {name: (folder / name).open("wb") for name in (TOKENS, SENTENCES, DOCUMENTS, COPIES)}
        for name in (SENTENCES, DOCUMENTS):
            self._files[name].write(np.zeros(1, np.int64).tobytes())
        names = ("documents", "sentences", "tokens", "words", "tokens_with_copies")
        self.counts: dict[str, Any] = {**dict.fromkeys(names, 0), "sources": {}}

    def __enter__(self) -> "_SplitWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, unit: _UnitDocuments, chosen: np.ndarray, copies: np.ndarray) -> None:
        """Append the chosen documents of a unit, each with its copies."""
        # Neighbours go together: where the choice changes, a run begins or ends.
        edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]])))
        for first, last in edges.reshape(-1, 2).tolist():
            self._files[TOKENS].write(unit.all_tokens[unit.token_bounds[first] : unit.token_bounds[last]].tobytes())
        in_chosen = np.repeat(chosen, unit.sentences)
        sentence_ends = self.counts["tokens"] + np.cumsum(unit.sentence_tokens[in_chosen], dtype=np.int64)
        document_ends = self.counts["sentences"] + np.cumsum(unit.sentences[chosen], dtype=np.int64)
        self._files[SENTENCES].write(sentence_ends.tobytes())
        self._files[DOCUMENTS].write(document_ends.tobytes())
        self._files[COPIES].write(copies[chosen].astype(np.uint16).tobytes())
        added = {
            "documents": int(chosen.sum()),
            "sentences": int(in_chosen.sum()),
            "tokens": int(unit.tokens[chosen].sum()),
            "words": int(unit.words[chosen].sum()),
            "tokens_with_copies": int((unit.tokens[chosen] * copies[chosen]).sum()),
        }
        of_source = self.counts["sources"].setdefault(unit.source, dict.fromkeys(added, 0))
        for name, amount in added.items():
            self.counts[name] += amount
            of_source[name] += amount
