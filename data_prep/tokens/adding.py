"""Tokens that a vocabulary gets beside its own: words of a domain that it would cut into pieces."""

from pathlib import Path
from typing import TYPE_CHECKING

from earlybert.core.errors import UserError
from earlybert.core.paths import did_you_mean
from earlybert.data_prep.tokens.tokenizer import vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def add_tokens(tokenizer: "PreTrainedTokenizerFast", file: Path) -> None:
    """Add the tokens of a file, one a line, where they stand as words of their own in text.

    Raises:
        UserError: The file cannot be read or names none; or a line is empty, also to the tokenizer, stands there twice,
            or is a special or another single token already; or the vocabulary leaves numbers out.
    """
    from tokenizers import AddedToken

    tokens = read_tokens(file)
    seen: dict[str, int] = {}
    for number, token in enumerate(tokens, start=1):
        where = f"add_tokens: {file}:{number}"
        if not token:
            raise UserError(f"{where} is empty, but must be a token; a file has one a line.")
        if token in tokenizer.all_special_tokens:
            raise UserError(f"{where} is {token}, a special token, which the vocabulary has already; leave it out.")
        # What text is before it is cut into pieces: an uncased vocabulary takes Whale for whale.
        written = _normalised(tokenizer, token)
        if not written.strip():
            raise UserError(f"{where} is {token!r}, of which the tokenizer leaves nothing; leave it out.")
        if (first := seen.setdefault(written, number)) != number:
            raise UserError(f"{where} is {token!r}, the same as line {first}; name every token once.")
        if tokenizer.tokenize(token) == [written]:
            raise UserError(f"{where} is {token!r}, which is one token of the vocabulary already; leave it out.")
    size = vocabulary_size(tokenizer)
    tokenizer.add_tokens([AddedToken(token, single_word=True, normalized=True) for token in tokens])
    if tokenizer.get_vocab()[tokens[0]] < size:
        raise UserError(
            f"add_tokens: {tokens[0]} would get the number of another token, for the vocabulary has numbers below "
            f"{size:,} that it leaves out; give each of them a token, such as [unused1]."
        )


def _normalised(tokenizer: "PreTrainedTokenizerFast", token: str) -> str:
    normaliser = tokenizer.backend_tokenizer.normalizer
    return str(normaliser.normalize_str(token)) if normaliser else token


def read_tokens(file: Path) -> list[str]:
    """The lines of a file; raises UserError where it cannot be read or has none."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise UserError(f"add_tokens: {file} cannot be read ({error.strerror}){did_you_mean(file)}") from None
    except UnicodeDecodeError:
        raise UserError(f"add_tokens: {file} is not UTF-8 text, but must name a token a line.") from None
    if not lines:
        raise UserError(f"add_tokens: {file} names no token, but must have one a line.")
    return lines
