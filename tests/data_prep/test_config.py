"""Every field that can be wrong is named, with its value."""

import json
from dataclasses import replace
from typing import Any

import pytest

from earlybert.core.errors import UserError
from earlybert.data_prep.cleaning.config import CleaningConfig
from earlybert.data_prep.config import CorpusConfig, MixedSource
from earlybert.data_prep.steps.same_corpus import require_same


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"source": "web"}, ["source", "'web'", "pydocs"]),
        ({"source": "book"}, ["source", "'book'", "did you mean books?"]),
        ({"source": "text"}, ["files", "empty"]),
        ({"source": "hub"}, ["hub_name"]),
        ({"lengths": []}, ["lengths", "[]"]),
        ({"lengths": [64, 64]}, ["lengths", "[64, 64]"]),
        ({"lengths": [7, 64]}, ["lengths", "7", "at least 8"]),
        ({"vocab_size": 5}, ["vocab_size", "5"]),
        ({"max_megabytes": 0.0}, ["max_megabytes", "0.0"]),
        ({"short_sequence_probability": 1.5}, ["short_sequence_probability", "1.5"]),
        ({"validation_fraction": 0.0}, ["validation_fraction", "0.0"]),
        ({"validation_fraction": 1.0}, ["validation_fraction", "1.0"]),
        ({"validation_fraction": float("nan")}, ["validation_fraction", "nan"]),
        ({"duplicates": 0}, ["duplicates", "0"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"max_rows_without_text": 1.5}, ["max_rows_without_text", "1.5"]),
        ({"language": "german"}, ["language", "'german'", "de"]),
        ({"source": "mix", "mix": [MixedSource(name="a")], "language": "de"}, ["language", "mix"]),
        ({"source": "books"}, ["files", "books"]),
        ({"source": "mix"}, ["mix", "at least one"]),
        ({"mix": [MixedSource(name="a")]}, ["source is 'pydocs'", "['a']"]),
        ({"source": "mix", "mix": [MixedSource(name="a"), MixedSource(name="a")]}, ["['a', 'a']", "twice"]),
        ({"source": "mix", "mix": [MixedSource(name="a")], "max_megabytes": 1}, ["max_megabytes", "mix"]),
    ],
)
def test_bad_field_is_named_with_its_value(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        CorpusConfig(**fields)
    message = str(raised.value)
    assert all(word in message for word in words), message
    assert message.endswith(".") and "\n" not in message


@pytest.mark.parametrize(
    ("section", "fields", "words"),
    [
        (MixedSource, {"name": "a", "weight": 0}, ["mix: a", "weight 0"]),
        (MixedSource, {"name": "a", "weight": float("nan")}, ["mix: a", "weight nan"]),
        (MixedSource, {"name": "a", "source": "mix"}, ["mix: a", "no other mix"]),
        (MixedSource, {"name": "a", "source": "text"}, ["files", "empty"]),
        (CleaningConfig, {"min_document_characters": 0}, ["cleaning.min_document_characters", "0"]),
        (CleaningConfig, {"min_letter_share": 1.5}, ["cleaning.min_letter_share", "1.5"]),
        (CleaningConfig, {"max_symbol_share": float("nan")}, ["cleaning.max_symbol_share", "nan"]),
    ],
)
def test_bad_field_of_a_section_is_named(section: type, fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        section(**fields)
    assert all(word in str(raised.value) for word in words), raised.value


def test_one_source_is_a_mix_of_itself() -> None:
    (source,) = CorpusConfig(source="text", files=["a.txt"], max_megabytes=3).sources
    assert (source.name, source.weight, source.files, source.max_megabytes) == ("text", 1, ["a.txt"], 3)


def test_smallest_length_is_allowed() -> None:
    assert CorpusConfig(lengths=[8]).lengths == [8]


FIRST_FIELDS = {
    *("source", "files", "text_field", "hub_name", "hub_config", "hub_split", "max_megabytes", "mix", "cleaning"),
    *("tokenizer", "tokenizer_kind", "vocab_size", "lowercase", "lengths", "objective", "short_sequence_probability"),
    *("duplicates", "packing", "validation_fraction", "seed"),
}


def test_corpora_of_older_versions_have_equal_configurations() -> None:
    """Fields that came later stand in a manifest only where they say something."""
    later = {"language", "strip_accents", "max_rows_without_text", "add_tokens"}
    plain = CorpusConfig(source="mix", mix=[MixedSource(name="a"), MixedSource(name="b", weight=2)])
    assert plain.as_dict().keys() == FIRST_FIELDS and not later & plain.as_dict()["mix"][0].keys()
    assert CorpusConfig.from_dict(json.loads(json.dumps(plain.as_dict()))) == plain
    told = CorpusConfig(source="mix", mix=[MixedSource(name="a", language="de")], strip_accents=False)
    assert told.as_dict()["strip_accents"] is False and told.as_dict()["mix"][0]["language"] == "de"
    assert CorpusConfig.from_dict(json.loads(json.dumps(told.as_dict()))) == told
    require_same(plain, json.loads(json.dumps(plain.as_dict())), "It is there")
    with pytest.raises(UserError, match="It is there with strip_accents None, not False"):
        require_same(replace(plain, strip_accents=False), plain.as_dict(), "It is there")
    with pytest.raises(UserError, match="It is there with language 'de', not 'en'"):
        require_same(CorpusConfig(), CorpusConfig(language="de").as_dict(), "It is there")
