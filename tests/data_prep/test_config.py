"""Every field that can be wrong is named, with its value."""

from typing import Any

import pytest

from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.errors import CorpusError


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"source": "web"}, ["source", "'web'", "pydocs"]),
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
    ],
)
def test_bad_field_is_named_with_its_value(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(CorpusError) as raised:
        CorpusConfig(**fields)
    message = str(raised.value)
    assert all(word in message for word in words), message
    assert message.endswith(".") and "\n" not in message


def test_smallest_length_is_allowed() -> None:
    assert CorpusConfig(lengths=[8]).lengths == [8]
