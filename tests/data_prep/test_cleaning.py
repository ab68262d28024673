"""What cleaning changes, what it drops, and that all of it is counted."""

import unicodedata

import numpy as np
import pytest

from earlybert.data_prep.cleaning.config import CleaningConfig
from earlybert.data_prep.cleaning.counts import EXAMPLES, Counts
from earlybert.data_prep.cleaning.rules import clean

RULES = CleaningConfig(min_document_characters=1)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Gru\u0308ße an alle.", "Grüße an alle."),
        (" A  line\twith\u00a0odd\u2003spaces. \n\n \n Another. ", "A line with odd spaces.\nAnother."),
        ("Soft\u00adhyphen, zero\u200bwidth, \ufeffmark, bell\x07.", "Softhyphen, zerowidth, mark, bell."),
        ("Lost \ufffdletters.", "Lost letters."),
        ("A picture\ufffc, and  spaces.", "A picture, and spaces."),
        ("re\u200b\u0301sume\u00ad\u0301", "r\u00e9sum\u00e9"),
        ("Line\u2028separator and\x0bvertical\x85tab.", "Line separator and vertical tab."),
        # Persian needs the non-joiner, Hindi the joiner.
        ("می\u200cخواهم کتاب بخوانم", "می\u200cخواهم کتاب بخوانم"),
        ("क्\u200dष क्या है", "क्\u200dष क्या है"),
        ("Clean text stays.\nAs it is.", "Clean text stays.\nAs it is."),
    ],
)
def test_text_in_clean_form(text: str, cleaned: str) -> None:
    counts = Counts()
    assert clean(text, RULES, counts) == cleaned
    assert not counts.rules


@pytest.mark.parametrize(
    "text",
    [
        "हिन्दी विश्व की एक प्रमुख भाषा है और भारत की राजभाषा है।",
        "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอน",
        "日本語は、日本国内や、かつての日本領だった国で使用されている言語。",
        "Tiếng Việt là ngôn ngữ của người Việt.",
    ],
)
def test_every_script_has_letters(text: str) -> None:
    assert clean(text, CleaningConfig(min_letter_share=0.8), Counts()) == unicodedata.normalize("NFC", text)


def test_short_speech_stays_and_rulers_go() -> None:
    speech = '"No!"\n* * *\n"…"\n–––––\n"Yes?"\n12:30'
    assert clean(speech, RULES, Counts()) == '"No!"\n"Yes?"'
    assert clean("12:30\n...\nA.", CleaningConfig(min_document_characters=1, min_letter_share=0), Counts()) == "A."


def test_shares_are_those_of_a_count_by_hand() -> None:
    rng = np.random.default_rng(5)
    alphabet = list("abcédefgijkж 1234., =<{}|_*")
    paragraphs = ["".join(rng.choice(alphabet, rng.integers(1, 60))).strip() or "a" for _ in range(500)]
    paragraphs = [" ".join(paragraph.split()) for paragraph in paragraphs]
    rules = CleaningConfig(min_document_characters=1, min_letter_share=0.4, max_symbol_share=0.3)

    def stays(paragraph: str) -> bool:
        counted = [character for character in paragraph if character not in " .,"]
        letters = sum(character.isalpha() for character in counted)
        symbols = sum(character in "=<{}|_*" for character in counted)
        return letters > 0.4 * len(counted) and symbols <= 0.3 * len(counted)

    expected = [paragraph for paragraph in paragraphs if stays(paragraph)]
    assert 50 < len(expected) < 450
    counts = Counts()
    assert clean("\n".join(paragraphs), rules, counts).split("\n") == expected
    assert sum(rule.dropped for rule in counts.rules.values()) == 500 - len(expected)


def test_every_rule_counts_and_keeps_examples() -> None:
    counts = Counts()
    rules = CleaningConfig(min_paragraph_characters=5, min_document_characters=20)
    text = "Abc\nA paragraph that stays for good.\n1 2 3 4 5 6\n2 3 4 5 6 7\na = [b | c] <d>"
    assert clean(text, rules, counts) == "A paragraph that stays for good."
    assert clean("A short one.", rules, counts) == ""
    assert clean(" \n", rules, counts) == ""
    assert counts.as_dict() == {
        "document: short": {"dropped": 2, "characters": 12, "examples": ["A short one."]},
        "paragraph: few letters": {
            "dropped": 3,
            "characters": 37,
            "examples": ["1 2 3 4 5 6", "2 3 4 5 6 7", "a = [b | c] <d>"],
        },
        "paragraph: short": {"dropped": 1, "characters": 3, "examples": ["Abc"]},
    }


def test_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    whole, sums = Counts(), Counts()
    for part in range(4):
        counts = Counts()
        for number in range(part + 1):
            for target in (whole, counts):
                target.drop(f"rule {number % 2}", f"text {part} {number}" * 50)
        sums.add(Counts.from_dict(counts.as_dict()))
    assert sums.as_dict() == whole.as_dict()
    assert len(whole.rules["rule 0"].examples) == EXAMPLES < whole.rules["rule 0"].dropped == 6
