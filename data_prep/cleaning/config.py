"""What is cleaned out of text."""

from dataclasses import dataclass

from earlybert.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CleaningConfig:
    """What is dropped. Text is always brought to Unicode's form NFC; exact duplicates are always dropped.

    Args:
        min_paragraph_characters: Shorter paragraphs are dropped.
        min_document_characters: Documents with less text are dropped.
        min_letter_share: Paragraphs stay only when more of their characters than this share are letters. Vowel signs
            and other marks are letters too; space and punctuation count for nothing, so "No!" has letters only.
        max_symbol_share: Paragraphs in which more of the characters are symbols of code, tables and markup are dropped.
        near_duplicates: Drop documents that share most of their five-word sequences with an earlier one (MinHash);
            needs `pip install rensa`.

    Raises:
        UserError: A field has a value that cannot work.
    """

    min_paragraph_characters: int = 1
    min_document_characters: int = 20
    min_letter_share: float = 0.5
    max_symbol_share: float = 0.1
    near_duplicates: bool = False

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("min_paragraph_characters", "min_document_characters"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"cleaning.{name} is {value}, but must be at least 1.")
        for name in ("min_letter_share", "max_symbol_share"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise UserError(f"cleaning.{name} is {share}, but must be from 0 to 1.")
