"""A finished corpus against counts of one's own: every word of the text occurs once, so a token names its place."""

import itertools
import json
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from earlybert.core.randomness import uniform
from earlybert.data_prep.config import CorpusConfig, MixedSource, Objective
from earlybert.data_prep.prepare import prepare
from earlybert.data_prep.samples.corpus import Corpus, Sample
from earlybert.data_prep.samples.masking import Masking

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
DOCUMENTS, PASSES, LENGTHS = 250, 2, [32, 128]


class Text:
    """Documents of sentences of words; token i stands at place i, and knows its sentence and document."""

    def __init__(self) -> None:
        rng = np.random.default_rng(11)
        words = map("".join, itertools.product(string.ascii_lowercase, repeat=4))
        self.document_of, self.sentence_of, self.documents, self.vocabulary = [], [], [], list(SPECIAL)
        sentences = 0
        for document in range(DOCUMENTS):
            lines = []
            for _ in range(rng.integers(2, 14)):
                line = list(itertools.islice(words, int(rng.integers(3, 20))))
                lines.append(" ".join(line))
                self.vocabulary += line
                self.document_of += [document] * len(line)
                self.sentence_of += [sentences] * len(line)
                sentences += 1
            self.documents.append("\n".join(lines))

    def place(self, token: int) -> int:
        return token - len(SPECIAL)


@pytest.fixture(scope="module")
def text() -> Text:
    return Text()


@pytest.fixture(scope="module")
def corpora(text: Text, tmp_path_factory: pytest.TempPathFactory) -> dict[Objective, Corpus]:
    folder = tmp_path_factory.mktemp("counted")
    (folder / "vocab.txt").write_text("\n".join(text.vocabulary) + "\n")
    # The first three documents come once more at the end.
    rows = [json.dumps({"text": document}) for document in [*text.documents, *text.documents[:3]]]
    (folder / "text.jsonl").write_text("\n".join(rows))
    objectives: list[Objective] = ["nsp", "sop", "full-sentences"]
    return {
        objective: prepare(
            CorpusConfig(
                source="text",
                files=[str(folder / "text.jsonl")],
                tokenizer=str(folder / "vocab.txt"),
                lengths=LENGTHS,
                objective=objective,
                duplicates=PASSES,
                validation_fraction=0.25,
                packing=True,
            ),
            folder / objective,
        )
        for objective in objectives
    }


def rows(corpus: Corpus, split: str, length: int) -> Sequence[Sample]:
    samples = corpus.samples(split, length)
    return samples.rows(range(len(samples)))


def segments(sample: Sample, text: Text) -> tuple[list[int], list[int]]:
    """The places of the tokens of A and B."""
    ids = sample.input_ids.tolist()
    a, b = ids[1 : sample.first_length - 1], ids[sample.first_length : -1]
    return [text.place(token) for token in a], [text.place(token) for token in b]


def consecutive(places: list[int]) -> bool:
    return places == list(range(places[0], places[0] + len(places)))


CASES = [("nsp", 32), ("nsp", 128), ("sop", 32), ("sop", 128), ("full-sentences", 32), ("full-sentences", 128)]


@pytest.mark.parametrize(("objective", "length"), CASES)
def test_every_token_is_used_once_a_pass_or_counted_as_dropped(
    objective: Objective, length: int, text: Text, corpora: dict[Objective, Corpus]
) -> None:
    corpus = corpora[objective]
    sides: dict[str, set[int]] = {}
    for split, passes in (("train", PASSES), ("validation", 1)):
        used = np.zeros(len(text.document_of), dtype=int)
        random_tokens = labels = 0
        for sample in rows(corpus, split, length):
            a, b = segments(sample, text)
            labels += sample.next_sentence_label
            used[a] += 1
            if objective == "nsp" and sample.next_sentence_label:
                random_tokens += len(b)
            else:
                used[b] += 1
        counts = corpus.manifest["counts"][split]
        usage = counts["usage"][str(length)]
        sides[split] = {text.document_of[place] for place in np.flatnonzero(used)}
        in_split = np.isin(text.document_of, list(sides[split]))
        assert used.max() == passes
        assert used.sum() == usage["tokens_in_order"] and random_tokens == usage["tokens_random"]
        assert passes * in_split.sum() - used.sum() == usage["tokens_dropped"]
        assert labels == usage["labels"]
        assert (counts["documents"], counts["tokens"]) == (len(sides[split]), in_split.sum())
    assert not sides["train"] & sides["validation"]
    assert len(sides["train"] | sides["validation"]) == DOCUMENTS, "no document is lost"
    assert abs(len(sides["validation"]) - 0.25 * DOCUMENTS) < 5 * np.sqrt(DOCUMENTS * 0.25 * 0.75)
    assert corpus.manifest["dropped"]["document: exact duplicate"]["dropped"] == 3


@pytest.mark.parametrize("length", LENGTHS)
def test_true_next_segments_are_next_and_random_ones_from_another_document(
    length: int, text: Text, corpora: dict[Objective, Corpus]
) -> None:
    free_labels = []
    for split in ("train", "validation"):
        for sample in rows(corpora["nsp"], split, length):
            a, b = segments(sample, text)
            assert consecutive(a) and consecutive(b)
            # What a sample that is not full lacks was never there; truncation leaves full samples only.
            whole = len(sample.input_ids) < length
            if sample.next_sentence_label:
                assert text.document_of[a[0]] != text.document_of[b[0]]
                assert text.document_of[b[0]] == text.document_of[b[-1]]
            else:
                assert text.document_of[a[0]] == text.document_of[b[-1]] and a[-1] < b[0]
                assert text.sentence_of[b[0]] - text.sentence_of[a[-1]] == 1 or not whole
                assert b[0] == a[-1] + 1 or not whole
            # A segment of many sentences was cut in two by choice, so its second part was replaced by a coin.
            if split == "train" and text.sentence_of[a[0]] != text.sentence_of[a[-1]]:
                free_labels.append(sample.next_sentence_label)
    share = np.mean(free_labels)
    assert len(free_labels) > 200 and abs(share - 0.5) < 5 * 0.5 / np.sqrt(len(free_labels))


@pytest.mark.parametrize("length", LENGTHS)
def test_swapped_segments_are_neighbours(length: int, text: Text, corpora: dict[Objective, Corpus]) -> None:
    labels = []
    for sample in rows(corpora["sop"], "train", length):
        first, second = segments(sample, text)[:: -1 if sample.next_sentence_label else 1]
        assert consecutive(first) and consecutive(second)
        assert text.document_of[first[0]] == text.document_of[second[-1]] and first[-1] < second[0]
        assert second[0] == first[-1] + 1 or len(sample.input_ids) == length
        labels.append(sample.next_sentence_label)
    assert abs(np.mean(labels) - 0.5) < 5 * 0.5 / np.sqrt(len(labels))


def test_shares_of_masking_over_a_whole_corpus(text: Text, corpora: dict[Objective, Corpus]) -> None:
    corpus = corpora["nsp"]
    special, samples = corpus.special_tokens, corpus.samples("train", 128)
    stored = samples.rows(range(len(samples)))
    masking = Masking(special, corpus.vocab_size, seed=1, max_predictions=20)
    predicted = masked_away = kept = 0
    for epoch in range(4):
        places = [(epoch, index) for index in range(len(samples))]
        masked = masking.mask(stored.input_ids, stored.bounds, places)
        there = masked.input_ids_T[masked.positions_N]
        assert not set(masked.labels_N.tolist()) & set(special.ids)
        assert np.array_equal(masked.labels_N, stored.input_ids[masked.positions_N])
        predicted += len(masked.positions_N)
        masked_away += int(np.sum(there == special.mask))
        kept += int(np.sum(there == masked.labels_N))
    tokens = 4 * len(stored.input_ids)
    # Rounding to whole tokens moves the share a little, and no sample has more than 20 predictions.
    assert abs(predicted / tokens - 0.15) < 0.005
    for found, share in ((masked_away, 0.8), (kept, 0.1), (predicted - masked_away - kept, 0.1)):
        assert abs(found - share * predicted) < 5 * np.sqrt(predicted * share * (1 - share))


@pytest.mark.parametrize(("objective", "length"), CASES)
def test_packing_holds_every_sample_once_and_fills_better(
    objective: Objective, length: int, corpora: dict[Objective, Corpus]
) -> None:
    corpus = corpora[objective]
    samples, packing = corpus.samples("train", length), corpus.packed_rows("train", length)
    sizes = np.array([len(sample.input_ids) for sample in samples.rows(range(len(samples)))])
    packed = packing.rows(range(len(packing)))
    assert sorted(np.concatenate(packed).tolist()) == list(range(len(samples)))
    assert max(sizes[row].sum() for row in packed) <= length
    usage = corpus.manifest["counts"]["train"]["usage"][str(length)]
    assert usage["fill"] == pytest.approx(sizes.sum() / (len(samples) * length))
    assert usage["packed_fill"] == pytest.approx(sizes.sum() / (len(packing) * length))
    assert usage["packed_fill"] > usage["fill"]
    picked = [len(packing) - 1, 0, 0]
    assert all(np.array_equal(row, packed[index]) for row, index in zip(packing.rows(picked), picked, strict=True))


def test_fertility_and_unknown_share(text: Text, tmp_path: Path) -> None:
    """A vocabulary that lacks a letter of some words, and spells others in two pieces."""
    changed = [document.replace("q ", "ж ").replace("r ", "rs ") for document in text.documents]
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": document}) for document in changed))
    (tmp_path / "vocab.txt").write_text("\n".join([*text.vocabulary, "##s"]) + "\n")
    config = CorpusConfig(
        source="text",
        files=[str(tmp_path / "text.jsonl")],
        tokenizer=str(tmp_path / "vocab.txt"),
        lengths=[64],
        validation_fraction=0.3,
        objective="full-sentences",
    )
    corpus = prepare(config, tmp_path / "corpus")
    counts, vocabulary = corpus.manifest["counts"]["validation"], corpus.manifest["vocabulary"]
    ids = np.concatenate([sample.input_ids[1:-1] for sample in rows(corpus, "validation", 64)])
    assert vocabulary["unknown_share"] == np.mean(ids == corpus.special_tokens.unknown)
    written = " ".join(changed).split()
    assert vocabulary["unknown_share"] == pytest.approx(sum("ж" in word for word in written) / len(written), rel=0.2)
    assert vocabulary["pieces_per_word"] == pytest.approx(
        1 + sum(word.endswith("rs") for word in written) / len(written), rel=0.01
    )
    assert counts["words"] * vocabulary["pieces_per_word"] == pytest.approx(len(ids))
    continued = sum(token.startswith("##") for token in corpus.tokenizer.convert_ids_to_tokens(ids.tolist()))
    assert counts["words"] == len(ids) - continued
    letters = sum(map(len, written)) + len(written)  # with the space after each
    expected = sum(len(word) for word in written if "ж" in word) / letters
    assert vocabulary["unknown_character_share"] == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize(
    ("written", "warns"), [("ครั้งหนึ่งนานมาแล้วมีชายคนหนึ่ง", True), ("hello there again", False)], ids=["Thai", "English"]
)
def test_characters_that_end_in_unknown_are_counted_and_named(
    written: str, warns: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text without spaces is one word to WordPiece, which is one token however long it is."""
    lines = [f"entry {number}: {written}. and so on" for number in range(100)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines))
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.:"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    config = CorpusConfig(
        source="text",
        files=[str(tmp_path / "text.txt")],
        tokenizer=str(tmp_path / "vocab.txt"),
        lengths=[64],
        validation_fraction=0.3,
    )
    held = prepare(config, tmp_path / "corpus").manifest["vocabulary"]
    warning = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warning")]
    assert ("unknown_character_share" in held) is warns is bool(warning)
    if warns:
        line = f"entry 12: {written}. and so on"
        assert held["unknown_character_share"] == pytest.approx(len(written) / len(line), rel=0.05)
        assert held["unknown_share"] < 0.1 and f"{held['unknown_character_share']:.1%}" in warning[0]
        assert written[:5] in warning[0]


def test_weights_of_a_mix_are_copies_in_every_pass_of_the_training_text(text: Text, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(text.vocabulary) + "\n")
    half = len(text.documents) // 2
    weights = {"often": 3.0, "once": 1.0}
    for name, documents in zip(weights, (text.documents[:half], text.documents[half:]), strict=True):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": document}) for document in documents))
    config = CorpusConfig(
        source="mix",
        mix=[
            MixedSource(name=name, source="text", files=[str(tmp_path / f"{name}.jsonl")], weight=weight)
            for name, weight in weights.items()
        ],
        tokenizer=str(tmp_path / "vocab.txt"),
        lengths=[64],
        duplicates=2,
        objective="full-sentences",
        validation_fraction=0.3,
    )
    corpus = prepare(config, tmp_path / "corpus")
    for split, passes in (("train", 2), ("validation", 1)):
        used = np.zeros(len(text.document_of), dtype=int)
        for sample in rows(corpus, split, 64):
            used[segments(sample, text)[0]] += 1
        often = np.array(text.document_of) < half
        assert set(used[often]) == {0, 6 if split == "train" else 1}
        assert set(used[~often]) == {0, passes}
        sources = corpus.manifest["counts"][split]["sources"]
        assert {name: found["tokens_with_copies"] for name, found in sources.items()} == {
            "often": used[often].sum(),
            "once": used[~often].sum(),
        }


def test_documents_are_held_out_by_their_digest_and_the_seed_alone() -> None:
    digests = np.random.default_rng(0).integers(0, 2**64, (20_000, 2), dtype=np.uint64)
    draws = {seed: uniform(seed, "validation", digests) for seed in (1, 2)}
    for found in draws.values():
        assert found.min() >= 0 and found.max() < 1
        counts, _ = np.histogram(found, bins=50, range=(0, 1))
        # 49 degrees of freedom: mean 49, standard deviation sqrt(98).
        assert abs(np.sum((counts - 400) ** 2 / 400) - 49) < 5 * np.sqrt(98)
    assert abs(np.corrcoef(draws[1], draws[2])[0, 1]) < 5 / np.sqrt(20_000)
    assert abs(np.corrcoef(draws[1][:-1], draws[1][1:])[0, 1]) < 5 / np.sqrt(20_000)
    assert np.array_equal(uniform(1, "validation", digests[::-1]), draws[1][::-1])
    assert not np.array_equal(uniform(1, "another purpose", digests), draws[1])
    neighbours = np.stack([np.arange(20_000), np.zeros(20_000)], axis=1).astype(np.uint64)
    assert abs(uniform(1, "validation", neighbours).mean() - 0.5) < 5 * np.sqrt(1 / 12 / 20_000)
