"""Training, loading and encoding."""

import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from earlybert.data_prep.errors import CorpusError
from earlybert.data_prep.tokenizer import SpecialTokens, encode, load_tokenizer, special_tokens, train_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTENCES = [
    "Näive users were using useful user interfaces.",
    "The usual user uses 北京 and the unusual user misuses [MASK] in the interface.",
    "Interfaces of users' users; using interfaces is usual!",
]


@pytest.fixture
def sentences_file(tmp_path: Path) -> Path:
    file = tmp_path / "sentences.txt"
    file.write_text("\n".join(SENTENCES), encoding="utf-8")
    return file


def write_vocabulary(directory: Path, tokens: list[str]) -> str:
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return str(directory / "vocab.txt")


def test_training_twice_gives_the_same_vocabulary(documents: list[str], tmp_path: Path) -> None:
    # Many rare characters and ties: what an unordered trainer would decide by chance.
    rare = " ".join(chr(0x4E00 + i) + chr(0x3B1 + i % 24) for i in range(300))
    (tmp_path / "text").write_text("\n".join([*documents, rare]), encoding="utf-8")
    first, second = (train_tokenizer(tmp_path / "text", vocab_size=400, lowercase=True).get_vocab() for _ in range(2))
    assert first == second
    assert sorted(first.values()) == list(range(400))
    assert [token for token, index in sorted(first.items(), key=lambda item: item[1])][:5] == SPECIAL


def test_lowercase_decides_about_case_and_accents(sentences_file: Path) -> None:
    pieces = {
        lowercase: "".join(
            train_tokenizer(sentences_file, vocab_size=128, lowercase=lowercase).tokenize("Näive")
        ).replace("##", "")
        for lowercase in (True, False)
    }
    assert pieces == {True: "naive", False: "Näive"}


def test_written_special_token_is_text(sentences_file: Path) -> None:
    tokenizer = train_tokenizer(sentences_file, vocab_size=200, lowercase=True)
    text = encode([["Using [MASK] and [CLS]."]], tokenizer)
    assert not set(text.tokens.tolist()) & set(special_tokens(tokenizer).ids) - {tokenizer.unk_token_id}
    assert "".join(tokenizer.convert_ids_to_tokens(text.tokens.tolist())).replace("##", "") == "using[mask]and[cls]."


def test_encoding_keeps_the_structure_and_drops_what_is_empty(sentences_file: Path) -> None:
    tokenizer = train_tokenizer(sentences_file, vocab_size=200, lowercase=True)
    documents = [[SENTENCES[0], SENTENCES[2]], ["\u200b"], ["\u200b", SENTENCES[1], "\u200b"]]
    text = encode(documents, tokenizer)
    single = [tokenizer(sentence, add_special_tokens=False)["input_ids"] for sentence in (SENTENCES[0], SENTENCES[2])]
    assert text.document_bounds.tolist() == [0, 2, 3]
    assert text.token_bounds.tolist() == [0, len(single[0]) + len(single[1]), len(text.tokens)]
    assert np.split(text.tokens, text.sentence_bounds[1:-1])[0].tolist() == single[0]
    assert np.split(text.tokens, text.sentence_bounds[1:-1])[1].tolist() == single[1]
    assert text.tokens.dtype == np.uint16


def test_large_vocabulary_needs_wider_integers(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path, [*SPECIAL, *(f"w{i}" for i in range(1 << 16))])
    text = encode([["w65530 w3"]], load_tokenizer(path, lowercase=True))
    assert text.tokens.dtype == np.uint32
    assert text.tokens.tolist() == [65535, 8]


def test_vocabulary_file_json_and_folder_give_the_same_tokens(sentences_file: Path, tmp_path: Path) -> None:
    trained = train_tokenizer(sentences_file, vocab_size=200, lowercase=False)
    trained.save_pretrained(tmp_path / "folder")
    tokens = sorted(trained.get_vocab(), key=lambda token: trained.get_vocab()[token])
    expected = trained.tokenize(" ".join(SENTENCES))
    for path in (tmp_path / "folder", tmp_path / "folder" / "tokenizer.json", write_vocabulary(tmp_path, tokens)):
        # lowercase counts for the bare vocabulary only; the others know that they are cased.
        loaded = load_tokenizer(str(path), lowercase=str(path).endswith("json") or Path(path).is_dir())
        assert loaded.tokenize(" ".join(SENTENCES)) == expected
        assert special_tokens(loaded) == SpecialTokens(pad=0, unknown=1, cls=2, sep=3, mask=4)


def test_truncation_in_a_tokenizer_file_does_not_cut_the_text(sentences_file: Path, tmp_path: Path) -> None:
    trained = train_tokenizer(sentences_file, vocab_size=200, lowercase=True)
    trained.backend_tokenizer.enable_truncation(4)
    trained.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"), lowercase=True)
    assert len(encode([[SENTENCES[0]]], loaded).tokens) == len(trained.tokenize(SENTENCES[0])) > 4


@pytest.mark.parametrize("missing", SPECIAL)
def test_missing_special_token_is_named(missing: str, sentences_file: Path, tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path, [token for token in [*SPECIAL, "a", "b"] if token != missing])
    with pytest.raises(CorpusError) as raised:
        load_tokenizer(path, lowercase=True)
    assert f"has no {missing}," in str(raised.value) and path in str(raised.value)
    trained = train_tokenizer(sentences_file, vocab_size=200, lowercase=True)
    content = json.loads(trained.backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != missing]
    content["post_processor"] = None
    del content["model"]["vocab"][missing]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CorpusError) as raised:
        load_tokenizer(str(tmp_path / "tokenizer.json"), lowercase=True)
    assert f"has no {missing}," in str(raised.value)


def test_tokenizer_that_is_not_there_or_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no file or folder .*absent"):
        load_tokenizer(str(tmp_path / "absent"), lowercase=True)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "tokenizer.json", tmp_path / "empty"):
        with pytest.raises(CorpusError) as raised:
            load_tokenizer(str(path), lowercase=True)
        assert f"{path} is not a tokenizer" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.skipif("EARLYBERT_DATA" not in os.environ, reason="EARLYBERT_DATA names no folder with real text")
@pytest.mark.parametrize("case", ["uncased", "cased"])
def test_published_vocabulary_agrees_with_hugging_face(case: str) -> None:
    from transformers import BertTokenizer

    from earlybert.data_prep.sources import read_file

    data = Path(os.environ["EARLYBERT_DATA"])
    vocabulary = data / "vocab" / f"bert-base-{case}-vocab.txt"
    folder, lowercase = vocabulary.parent, case == "uncased"
    published = BertTokenizer.from_pretrained(folder, vocab_file=str(vocabulary), do_lower_case=lowercase)
    loaded = load_tokenizer(str(vocabulary), lowercase=lowercase)
    assert special_tokens(loaded) == SpecialTokens(pad=0, unknown=100, cls=101, sep=102, mask=103)
    texts = list(islice(read_file(data / "wikipedia" / "wiki-00000.jsonl.xz", "text"), 20))
    text = encode([[line] for line in texts], loaded)
    expected = published(texts, add_special_tokens=False)["input_ids"]
    assert [part.tolist() for part in np.split(text.tokens, text.sentence_bounds[1:-1])] == expected
