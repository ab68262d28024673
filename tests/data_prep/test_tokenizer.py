"""Training, loading and encoding."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from earlybert.core.errors import UserError
from earlybert.data_prep.config import TokenizerKind
from earlybert.data_prep.tokens.tokenizer import (
    Encoder,
    SpecialTokens,
    continues_word,
    load_tokenizer,
    special_tokens,
    token_dtype,
    vocabulary_size,
)
from earlybert.data_prep.tokens.training import train_tokenizer as train
from tests.data_prep.conftest import SENTENCES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

KINDS: list[TokenizerKind] = ["wordpiece", "unigram", "bpe"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_tokenizer(
    file: Path, *, vocab_size: int, lowercase: bool, kind: TokenizerKind = "wordpiece"
) -> "PreTrainedTokenizerFast":
    return train(file, kind=kind, vocab_size=vocab_size, lowercase=lowercase)


def encode(sentences: list[str], tokenizer: "PreTrainedTokenizerFast", folder: Path) -> list[list[int]]:
    """What the preparation makes of each sentence."""
    tokenizer.save_pretrained(folder / "saved")
    tokens, lengths = Encoder(folder / "saved" / "tokenizer.json").encode(sentences, np.uint32)
    return [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])]


@pytest.fixture(scope="session")
def much_text(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many rare characters and ties: what an unordered trainer would decide by chance."""
    file = tmp_path_factory.mktemp("much") / "text"
    rare = " ".join(chr(0x4E00 + i) + chr(0x3B1 + i % 24) for i in range(300))
    file.write_text("\n".join([*documents, rare]), encoding="utf-8")
    return file


def write_vocabulary(directory: Path, tokens: list[str]) -> str:
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return str(directory / "vocab.txt")


@pytest.mark.parametrize("kind", KINDS)
def test_training_twice_gives_the_same_tokenizer(kind: TokenizerKind, much_text: Path) -> None:
    first, second = (train_tokenizer(much_text, kind=kind, vocab_size=600, lowercase=True) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    vocabulary = first.get_vocab()
    assert sorted(vocabulary.values()) == list(range(600))
    assert [token for token, index in sorted(vocabulary.items(), key=lambda item: item[1])][:5] == SPECIAL


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("lowercase", "strip_accents", "expected"),
    [
        (True, True, "naive"),
        (True, False, "näive"),
        (False, True, "Naive"),
        (False, False, "Näive"),
        # One word in 23 has an accent: so many that they stay.
        (True, None, "näive"),
        (False, None, "Näive"),
    ],
)
def test_case_and_accents_are_decided_apart(
    kind: TokenizerKind, lowercase: bool, strip_accents: bool | None, expected: str, sentences_file: Path
) -> None:
    size = 128 if kind == "wordpiece" else 60
    tokenizer = train(sentences_file, kind=kind, vocab_size=size, lowercase=lowercase, strip_accents=strip_accents)
    assert "".join(tokenizer.tokenize("Näive")).strip("▁").replace("##", "") == expected


@pytest.mark.parametrize("kind", KINDS)
def test_few_accents_are_taken_off_as_english_bert_does(kind: TokenizerKind, much_text: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(much_text.read_text() + "\nNaïve entries.")
    default, stripped = (
        train(tmp_path / "text", kind=kind, vocab_size=700, lowercase=True, strip_accents=strip)
        for strip in (None, True)
    )
    assert default.backend_tokenizer.to_str() == stripped.backend_tokenizer.to_str()
    assert "".join(default.tokenize("Naïve")).strip("▁").replace("##", "") == "naive"


@pytest.mark.parametrize("kind", KINDS)
def test_saved_tokenizer_keeps_accents(kind: TokenizerKind, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    line = "से बुखार और खांसी für die Ärztin"
    (tmp_path / "text").write_text(f"{line}\n" * 20)
    size = 128 if kind == "wordpiece" else 50
    train(tmp_path / "text", kind=kind, vocab_size=size, lowercase=True).save_pretrained(tmp_path / "saved")
    loaded: Any = AutoTokenizer.from_pretrained(tmp_path / "saved")
    (tokens,) = encode([line], loaded, tmp_path)
    text = "".join(loaded.convert_ids_to_tokens(tokens)).replace("##", "").replace("▁", "")
    assert text == line.lower().replace(" ", "")


GERMAN = ["für", "die", "ärztin", "##nen", "fur", "arztin"]


@pytest.mark.parametrize(
    ("tokens", "settings", "lowercase", "strip_accents", "expected"),
    [
        (GERMAN, None, True, None, "für die ärztin"),
        (GERMAN, None, True, True, "fur die arztin"),
        (["die", "fur", "arztin"], None, True, None, "fur die arztin"),
        (GERMAN, {"do_lower_case": True, "strip_accents": False}, True, None, "für die ärztin"),
        # As published: null follows the case.
        (GERMAN, {"do_lower_case": True, "strip_accents": None}, True, None, "fur die arztin"),
        (["für", "Die", "Ärztin"], {"do_lower_case": False}, True, None, "für Die Ärztin"),
    ],
)
def test_vocabulary_says_what_happens_to_accents(
    tokens: list[str],
    settings: dict[str, Any] | None,
    lowercase: bool,
    strip_accents: bool | None,
    expected: str,
    tmp_path: Path,
) -> None:
    path = write_vocabulary(tmp_path, [*SPECIAL, *tokens])
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(path, lowercase=lowercase, strip_accents=strip_accents)
    assert " ".join(tokenizer.tokenize("für Die Ärztin")) == expected


def test_accents_of_a_tokenizer_that_states_them_are_not_the_users(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path, [*SPECIAL, *GERMAN])
    load_tokenizer(path, lowercase=True).save_pretrained(tmp_path / "folder")
    assert load_tokenizer(str(tmp_path / "folder"), lowercase=True).tokenize("Für") == ["für"]
    with pytest.raises(UserError, match=r"strip_accents is True, but the tokenizer .*folder says itself"):
        load_tokenizer(str(tmp_path / "folder"), lowercase=True, strip_accents=True)


def test_written_special_token_is_text(sentences_file: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(sentences_file, vocab_size=200, lowercase=True)
    ((*tokens,),) = encode(["Using [MASK] and [CLS]."], tokenizer, tmp_path)
    assert not set(tokens) & set(special_tokens(tokenizer).ids) - {tokenizer.unk_token_id}
    assert "".join(tokenizer.convert_ids_to_tokens(tokens)).replace("##", "") == "using[mask]and[cls]."


def test_encoding_is_that_of_single_sentences(sentences_file: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(sentences_file, vocab_size=200, lowercase=True)
    sentences = [SENTENCES[0], "\u200b", SENTENCES[2]]
    single = [tokenizer(sentence, add_special_tokens=False)["input_ids"] for sentence in sentences]
    assert encode(sentences, tokenizer, tmp_path) == single and single[1] == []


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_sentences_are_encoded_one_by_one_whatever_a_tokenizer_does_at_the_beginning(
    scheme: str, much_text: Path, tmp_path: Path
) -> None:
    from tokenizers import pre_tokenizers

    tokenizer = train_tokenizer(much_text, kind="unigram", vocab_size=500, lowercase=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    sentences = [*much_text.read_text(encoding="utf-8").split("\n")[:150], "", " ", "\ufdd0 or \ufdd0"]
    expected = tokenizer(sentences, add_special_tokens=False)["input_ids"]
    found = encode(sentences, tokenizer, tmp_path)
    assert found[:-1] == expected[:-1]
    assert found[-1] == tokenizer(" or ", add_special_tokens=False)["input_ids"], "what ends sentences is no text"


def test_large_vocabulary_needs_wider_integers(tmp_path: Path) -> None:
    for words, expected in ((1 << 16) - 5, np.uint16), ((1 << 16) - 4, np.uint32):
        path = write_vocabulary(tmp_path, [*SPECIAL, *(f"w{i}" for i in range(words))])
        tokenizer = load_tokenizer(path, lowercase=True)
        assert token_dtype(vocabulary_size(tokenizer)) == expected
        assert encode([f"w{words - 1} w3"], tokenizer, tmp_path) == [[words + 4, 8]]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_fast_tokenizer_gives_what_sentencepiece_gives(
    kind: TokenizerKind, lowercase: bool, much_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sentencepiece

    originals = []

    class Recorded(sentencepiece.SentencePieceProcessor):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            originals.append(self)

    monkeypatch.setattr(sentencepiece, "SentencePieceProcessor", Recorded)
    tokenizer = train_tokenizer(much_text, kind=kind, vocab_size=500, lowercase=lowercase)
    (original,) = originals
    normalizer = tokenizer.backend_tokenizer.normalizer
    lines = [line for line in much_text.read_text(encoding="utf-8").split("\n") if line][:200]
    lines += ["  Two   spaces\u00a0and ﬁne ligatures ", "A line with unknown ☃☃ snowmen.", "x", "Ǆ ǅ Å"]
    same = [
        tokenizer(line, add_special_tokens=False)["input_ids"] == original.encode(normalizer.normalize_str(line))
        for line in lines
    ]
    # Segmentations of equal score may be told apart by rounding.
    assert sum(same) >= 0.99 * len(lines) and (kind == "unigram" or all(same))


@pytest.mark.parametrize("kind", KINDS)
def test_saved_tokenizer_is_loaded_by_transformers_alone(kind: TokenizerKind, much_text: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    trained = train_tokenizer(much_text, kind=kind, vocab_size=400, lowercase=True)
    trained.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert special_tokens(loaded) == special_tokens(trained) == SpecialTokens(pad=0, unknown=1, cls=2, sep=3, mask=4)
    first, second = "Entry 3 part 1 says so.", "Line 2 does [MASK] too."
    encoded = loaded(first, second)
    assert encoded == trained(first, second)
    a, b = (loaded(text, add_special_tokens=False)["input_ids"] for text in (first, second))
    assert encoded["input_ids"] == [2, *a, 3, *b, 3] and 4 in b
    assert encoded["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_go_on_with_a_word(kind: TokenizerKind, much_text: Path, tmp_path: Path) -> None:
    """Words are what white space parts (SentencePiece) or punctuation too (WordPiece)."""
    tokenizer = train_tokenizer(much_text, kind=kind, vocab_size=450, lowercase=True)
    flags = continues_word(tokenizer)
    special = special_tokens(tokenizer)
    assert len(flags) == vocabulary_size(tokenizer)
    assert not any(flags[token] for token in special.ids if token != special.unknown)
    assert flags[special.unknown] == (kind != "wordpiece")
    sentence = "Entry 17 part 2 line 3 says bafado kelito."
    (tokens,) = encode([sentence], tokenizer, tmp_path)
    words: list[str] = []
    for token, goes_on in zip(tokenizer.convert_ids_to_tokens(tokens), flags[tokens].tolist(), strict=True):
        text = token.removeprefix("##").removeprefix("▁")
        words[-1:] = [words[-1] + text] if goes_on else [*words[-1:], text]
    expected = sentence.lower().split()
    if kind == "wordpiece":
        expected = sentence.lower().replace(".", " .").split()
    assert words == expected


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_an_unknown_piece_does_not_cut_its_word(kind: TokenizerKind, much_text: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(much_text, kind=kind, vocab_size=450, lowercase=True)
    (tokens,) = encode(["line bafa☃do says ☃ line"], tokenizer, tmp_path)
    assert tokens.count(tokenizer.unk_token_id) == 2
    begins = tokenizer.convert_ids_to_tokens([token for token in tokens if not continues_word(tokenizer)[token]])
    assert len(begins) == 5 and all(token.startswith("▁") for token in begins)


def test_byte_level_sentences_begin_a_word(much_text: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer, learner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, show_progress=False)
    learner.train([str(much_text)], trainer)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learner, mask_token="[MASK]", **names)
    sentences = much_text.read_text(encoding="utf-8").split("\n")[:200]
    encoded = encode([sentence for sentence in sentences if sentence], tokenizer, tmp_path)
    flags = continues_word(tokenizer)
    assert len(encoded) > 100 and not any(flags[tokens[0]] for tokens in encoded)
    (text,) = tokenizer.batch_decode([[token for tokens in encoded for token in tokens]])
    assert text.split() == " ".join(sentences).split()


@pytest.mark.parametrize("name", ["chinese", "korean"])
@pytest.mark.parametrize("kind", KINDS)
def test_large_alphabets_are_covered(kind: TokenizerKind, name: str, tmp_path: Path) -> None:
    """3,000 characters, the rarest of which stand in the text a few times, or 1,500 syllables in words."""
    rng = np.random.default_rng(0)
    first, count, words = (0x4E00, 3000, 1) if name == "chinese" else (0xAC00, 1500, 12)
    weights = 1 / (np.arange(count) + 10)
    lines = []
    for _ in range(3000):
        drawn = "".join(chr(first + int(point)) for point in rng.choice(count, 48, p=weights / weights.sum()))
        lines.append(" ".join(drawn[at : at + 48 // words] for at in range(0, 48, 48 // words)))
    file = tmp_path / "text"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = train_tokenizer(file, kind=kind, vocab_size=8000, lowercase=False)
    ids = [token for line in lines[:500] for token in tokenizer(line, add_special_tokens=False)["input_ids"]]
    assert ids.count(tokenizer.unk_token_id) < 0.001 * len(ids) and len(tokenizer) <= 8000
    with pytest.raises(UserError, match="vocab_size is 500, but"):
        train_tokenizer(file, kind=kind, vocab_size=500, lowercase=False)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_written_special_tokens_are_text_to_sentencepiece_too(kind: TokenizerKind, tmp_path: Path) -> None:
    file = tmp_path / "text"
    lines = [f"THE [MASK] AND THE [CLS] OR [{word}] KEEP THE UNUSED PADS" for word in ("PAD", "SEP", "UNK", "MASK")]
    text = ["A PADDED SEPARATE MASKED UNKNOWN CLASS [OF] BRACKETS"] * 3000
    file.write_text("\n".join(lines * 9 + text), encoding="utf-8")
    tokenizer = train_tokenizer(file, kind=kind, vocab_size=150, lowercase=False)
    for line, tokens in zip(lines, encode(lines, tokenizer, tmp_path), strict=True):
        assert not set(tokens) & set(special_tokens(tokenizer).ids)
        assert tokenizer.decode(tokens) == line
    (unknown,) = encode(["[☃] [PAD"], tokenizer, tmp_path)
    assert unknown.count(tokenizer.unk_token_id) == 1
    assert tokenizer("[MASK] A", add_special_tokens=False)["input_ids"][0] == tokenizer.mask_token_id


@pytest.mark.parametrize("separator", [" ", ""])
def test_sentencepiece_learns_from_lines_of_any_length(separator: str, tmp_path: Path) -> None:
    file = tmp_path / "text"
    rng = np.random.default_rng(0)
    words = ["kelito", "bafado", "sonumi", "térafe"]
    long = separator.join(words[word] for word in rng.integers(4, size=40_000))
    file.write_text("\n".join([long, *(separator.join(words) for _ in range(300))]), encoding="utf-8")
    assert file.stat().st_size > 3 << 16
    tokenizer = train_tokenizer(file, kind="unigram", vocab_size=128, lowercase=False)
    assert tokenizer.unk_token_id not in tokenizer("kelito bafado", add_special_tokens=False)["input_ids"]
    assert {"▁" * bool(separator) + word for word in words} <= set(tokenizer.get_vocab())


def test_tokens_that_do_not_show_where_words_begin(sentences_file: Path) -> None:
    tokenizer = train_tokenizer(sentences_file, vocab_size=200, lowercase=True)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(model["vocab"], unk_token="[UNK]"))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    with pytest.raises(UserError, match="where words begin"):
        continues_word(PreTrainedTokenizerFast(tokenizer_object=words, mask_token="[MASK]", **names))


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_vocabulary_that_cannot_hold_the_characters_is_named(kind: TokenizerKind, much_text: Path) -> None:
    with pytest.raises(UserError, match=f"vocab_size is 128, but {kind} cannot reach it") as raised:
        train_tokenizer(much_text, kind=kind, vocab_size=128, lowercase=True)
    assert "\n" not in str(raised.value)
