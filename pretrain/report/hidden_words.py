"""Words of the held-out text, hidden one by one, for an exported network to find again in plain transformers."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from earlybert.core.randomness import generator
from earlybert.data_prep.samples.corpus import Corpus

if TYPE_CHECKING:
    from transformers import Pipeline, PreTrainedTokenizerFast

END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+")
# Whole words of four letters or more: shorter ones are mostly guessed from grammar alone.
WORD = re.compile(r"[^\W\d_]{4,}")
# Words of a sentence that reads well in one line.
SHORTEST, LONGEST = 8, 25


@dataclass(frozen=True)
class Riddle:
    """A sentence with the tokenizer's mask in place of one word, and that word."""

    sentence: str
    word: str


def held_out_riddles(corpus: Corpus, count: int, seed: int) -> list[Riddle]:
    """So many sentences of the validation samples, from all over it, each with a word hidden that is one token.

    The same for the same seed; fewer where the text has no more. Raises UserError where the corpus has no samples.
    """
    samples = corpus.samples("validation", max(corpus.lengths))
    order = generator(seed, "riddles").permutation(len(samples))
    riddles: list[Riddle] = []
    for number in order:
        if len(riddles) == count:
            break
        text = str(corpus.tokenizer.decode(samples.rows([number])[0].input_ids, skip_special_tokens=True))
        riddles += list(_riddles(text, corpus.tokenizer, seed, int(number)))[:1]
    return riddles


def _riddles(text: str, tokenizer: "PreTrainedTokenizerFast", seed: int, number: int) -> Iterator[Riddle]:
    """Of the whole sentences of a sample; its first and last may be cut."""
    for sentence in END_OF_SENTENCE.split(text)[1:-1]:
        words = [found for found in WORD.finditer(sentence) if len(tokenizer.tokenize(found[0])) == 1]
        if words and SHORTEST <= len(sentence.split()) <= LONGEST:
            hidden = words[generator(seed, "hidden word", number).integers(len(words))]
            masked = sentence[: hidden.start()] + str(tokenizer.mask_token) + sentence[hidden.end() :]
            yield Riddle(masked, hidden[0])


def guesses(fill_mask: "Pipeline", sentence: str, count: int = 3) -> list[tuple[str, float]]:
    """The likeliest words for the one mask of a sentence, with their probabilities."""
    return [(found["token_str"].strip(), found["score"]) for found in fill_mask(sentence, top_k=count)]
