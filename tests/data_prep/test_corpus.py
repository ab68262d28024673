"""The whole preparation: what lies in the directory, that it repeats, and that damage is found."""

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from earlybert.core.errors import UserError
from earlybert.data_prep.commands.prepare import main
from earlybert.data_prep.config import CorpusConfig, TokenizerKind
from earlybert.data_prep.prepare import merge, prepare, prepare_part
from earlybert.data_prep.samples.corpus import Corpus, Sample


def all_rows(corpus: Corpus, split: str, length: int) -> Sequence[Sample]:
    samples = corpus.samples(split, length)
    return samples.rows(range(len(samples)))


def squeeze(text: str) -> str:
    return "".join(text.lower().split())


@pytest.fixture
def copy(corpus: Corpus, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus.directory, tmp_path / "copy"))


def test_samples_are_pieces_of_the_documents(corpus: Corpus, documents: list[str]) -> None:
    """Label 0: one document holds A and then B. Label 1: they come from two. No document is in both splits."""
    texts = [squeeze(text) for text in documents]
    special = corpus.special_tokens
    found: dict[str, set[int]] = {}
    for split in ("train", "validation"):
        found[split] = set()
        for length in corpus.lengths:
            for sample in all_rows(corpus, split, length):
                ids = sample.input_ids.tolist()
                assert len(ids) <= length and ids[0] == special.cls and ids[-1] == special.sep
                assert ids[sample.first_length - 1] == special.sep
                assert len([token for token in ids if token in special.ids]) == 3
                a, b = (
                    squeeze("".join(corpus.tokenizer.convert_ids_to_tokens(part)).replace("##", ""))
                    for part in (ids[1 : sample.first_length - 1], ids[sample.first_length : -1])
                )
                places = [(n, text.find(a), text.rfind(b)) for n, text in enumerate(texts) if a in text and b in text]
                if sample.next_sentence_label == 0:
                    assert any(0 <= start < after for _, start, after in places)
                # Long pieces are found in one document only.
                for piece in (a, b):
                    holders = [n for n, text in enumerate(texts) if piece in text]
                    assert holders
                    if len(holders) == 1:
                        found[split].add(holders[0])
    assert not found["train"] & found["validation"]
    expected = {split: counts["documents"] for split, counts in corpus.manifest["counts"].items()}
    assert len(found["validation"]) == expected["validation"] > 2 and len(found["train"]) > 0.8 * expected["train"]


def test_counts_in_the_manifest_are_those_of_the_files(corpus: Corpus, documents: list[str]) -> None:
    counts = corpus.manifest["counts"]
    assert counts["train"]["documents"] + counts["validation"]["documents"] == len(documents)
    assert counts["train"]["sentences"] + counts["validation"]["sentences"] == sum(t.count("Entry") for t in documents)
    for split in counts:
        for length in corpus.lengths:
            assert counts[split]["samples"][str(length)] == len(corpus.samples(split, length))
    tokens = sum(len(corpus.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in documents)
    assert counts["train"]["tokens"] + counts["validation"]["tokens"] == tokens


def test_unigram_numbers_by_hand(config: CorpusConfig, tmp_path: Path) -> None:
    # Without pairs the samples tile the documents, so their tokens are the text's.
    corpus = prepare(replace(config, objective="full-sentences", duplicates=1, lengths=[64]), tmp_path / "corpus")
    tokens = {
        split: Counter(token for row in all_rows(corpus, split, 64) for token in row.input_ids[1:-1].tolist())
        for split in ("train", "validation")
    }
    held_out, train = sum(tokens["validation"].values()), sum(tokens["train"].values())
    cross_entropy = entropy = 0.0
    for token, count in tokens["validation"].items():
        cross_entropy -= count / held_out * math.log((tokens["train"][token] + 1) / (train + corpus.vocab_size))
        entropy -= count / held_out * math.log(count / held_out)
    assert corpus.manifest["unigram_cross_entropy"] == pytest.approx(cross_entropy, rel=1e-12)
    assert corpus.manifest["unigram_entropy"] == pytest.approx(entropy, rel=1e-12)
    assert entropy < cross_entropy


def test_duplicates_are_fresh_segmentations_of_the_training_text_only(
    config: CorpusConfig, corpus: Corpus, tmp_path: Path
) -> None:
    once = prepare(replace(config, duplicates=1), tmp_path / "once")
    rows = {
        name: [tuple(row.input_ids.tolist()) for row in all_rows(c, "train", 64)]
        for name, c in (("once", once), ("twice", corpus))
    }
    assert set(rows["once"]) <= set(rows["twice"])
    assert 1.9 < len(rows["twice"]) / len(rows["once"]) < 2.1
    assert len(set(rows["twice"]) - set(rows["once"])) > 0.7 * len(rows["once"])
    assert len(once.samples("validation", 64)) == len(corpus.samples("validation", 64))


def test_rows_keep_order_and_repetition(corpus: Corpus) -> None:
    samples = corpus.samples("train", 32)
    rows = all_rows(corpus, "train", 32)
    picked = [len(samples) - 1, 3, 3, 0]
    for row, index in zip(samples.rows(picked), picked, strict=True):
        assert np.array_equal(row.input_ids, rows[index].input_ids)
        assert (row.first_length, row.next_sentence_label) == (
            rows[index].first_length,
            rows[index].next_sentence_label,
        )
    assert rows[0].input_ids.dtype == np.int32
    with pytest.raises(IndexError):
        samples.rows([len(samples)])


def test_samples_are_shuffled(corpus: Corpus) -> None:
    texts = corpus.tokenizer.batch_decode([row.input_ids.tolist() for row in all_rows(corpus, "train", 64)])
    documents = [int(match[1]) for match in map(re.compile(r"entry (\d+) part").search, texts) if match]
    assert np.mean(np.abs(np.diff(documents)) <= 1) < 0.3


def test_many_shards_hold_what_one_holds(
    config: CorpusConfig, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("earlybert.data_prep.steps.preparation.TOKENS_PER_SHARD", 2500)
    sharded = prepare(config, tmp_path / "sharded")
    assert len(list((sharded.directory / "train" / "length-32").iterdir())) > 3
    for length in corpus.lengths:
        found, expected = (
            Counter((tuple(row.input_ids.tolist()), row.first_length, row.next_sentence_label) for row in rows)
            for rows in (all_rows(sharded, "train", length), all_rows(corpus, "train", length))
        )
        assert found == expected


def test_vocabulary_and_special_tokens_are_the_tokenizers(corpus: Corpus) -> None:
    assert corpus.vocab_size == len(corpus.tokenizer) == 400
    assert corpus.special_tokens.mask == corpus.tokenizer.mask_token_id
    assert corpus.objective == "nsp" and corpus.lengths == [32, 64]


def test_length_or_split_that_is_not_there_is_named(corpus: Corpus) -> None:
    with pytest.raises(UserError, match=r"length 128; it was prepared for 32, 64"):
        corpus.samples("train", 128)
    with pytest.raises(UserError, match=r"no split 'test', but train and validation"):
        corpus.samples("test", 32)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_corpus_exports_its_tokenizer(
    kind: TokenizerKind, config: CorpusConfig, documents: list[str], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    changed = replace(config, tokenizer_kind=kind, vocab_size=300, objective="full-sentences", duplicates=1)
    corpus = prepare(changed, tmp_path / "corpus")
    assert corpus.vocab_size == 300 and corpus.manifest["vocabulary"]["unknown_share"] < 0.01
    corpus.tokenizer.save_pretrained(tmp_path / "export")
    exported = AutoTokenizer.from_pretrained(tmp_path / "export")
    texts = [squeeze(text) for text in documents]
    for sample in all_rows(corpus, "train", 64):
        pieces = exported.convert_ids_to_tokens(sample.input_ids[1:-1].tolist())
        assert any("".join(pieces).replace("▁", "") in text for text in texts)


SHARD = "train/length-64/shard-00000.arrow"


def test_flipped_byte_is_found_by_checksum(copy: Path) -> None:
    content = bytearray((copy / SHARD).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / SHARD).write_bytes(content)
    Corpus.open(copy)
    with pytest.raises(UserError, match=rf"{SHARD} is damaged"):
        Corpus.open(copy, verify_checksums=True)


def test_truncated_or_missing_file_is_found_at_once(copy: Path) -> None:
    content = (copy / SHARD).read_bytes()
    (copy / SHARD).write_bytes(content[:-1])
    with pytest.raises(UserError, match=rf"{SHARD} has {len(content) - 1} bytes, .* {len(content)};"):
        Corpus.open(copy)
    (copy / SHARD).unlink()
    with pytest.raises(UserError, match=rf"{SHARD} is missing"):
        Corpus.open(copy)


def test_manifest_that_is_missing_damaged_or_of_another_format_is_named(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    for content, words in (
        (json.dumps({**manifest, "format": "earlybert-corpus/9"}), r"'earlybert-corpus/9', .* 'earlybert-corpus/2'"),
        ("[]", "format None"),
        (json.dumps(manifest)[:-5], "manifest.json is damaged"),
        ("[" * 10**5, "manifest.json is damaged"),
        (json.dumps({**manifest, "files": {}, "counts": 0}).replace("counts", "county"), "has no 'counts'"),
    ):
        (copy / "manifest.json").write_text(content)
        with pytest.raises(UserError, match=words):
            Corpus.open(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        Corpus.open(copy)


def test_other_directory_is_left_alone(config: CorpusConfig, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    for path in (tmp_path / "mine", tmp_path / "mine" / "file"):
        with pytest.raises(UserError, match="is not a corpus"):
            prepare(config, path)
    with pytest.raises(UserError, match=r"corpus.partial, which cannot be written to \(Not a directory\)"):
        prepare(config, tmp_path / "mine" / "file" / "corpus")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "file"]


def test_empty_directory_is_filled(config: CorpusConfig, tmp_path: Path) -> None:
    prepare(config, tmp_path)
    assert (tmp_path / "manifest.json").is_file()


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_the_corpus_lies_where_it_points(config: CorpusConfig, tmp_path: Path, exists: bool) -> None:
    target, link = tmp_path / "large_disk" / "corpus", tmp_path / "link"
    target.parent.mkdir()
    if exists:
        target.mkdir()
    link.symlink_to(target)
    prepare_part(config, link, 1, 1)
    assert (tmp_path / "large_disk" / "corpus.partial").is_dir()
    merge(link)
    assert link.is_symlink() and (target / "manifest.json").is_file()
    prepare(config, link)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large_disk", "link"]


def test_a_folder_that_cannot_be_replaced_is_refused_before_any_work(
    config: CorpusConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (Path("."), tmp_path):
        with pytest.raises(UserError, match=r"the current folder, which cannot become a corpus; name a folder in it"):
            prepare(config, out)
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "disk")
    with pytest.raises(UserError, match=r"out is disk, a mount point, which cannot become a corpus"):
        prepare_part(config, Path("disk"), 1, 2)
    assert [path.name for path in tmp_path.rglob("*")] == ["disk"]


def test_same_place_in_the_same_process_with_another_vocabulary(
    config: CorpusConfig, corpus: Corpus, tmp_path: Path
) -> None:
    prepare(replace(config, vocab_size=500), tmp_path / "corpus")
    shutil.rmtree(tmp_path / "corpus")
    assert prepare(config, tmp_path / "corpus").fingerprint == corpus.fingerprint


def test_too_few_documents_for_a_split(config: CorpusConfig, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("\n\n".join(f"Document number {i} is here." for i in range(10)))
    few = replace(config, files=[str(tmp_path / "few.txt")], vocab_size=128, validation_fraction=1e-9)
    with pytest.raises(UserError, match=r"10 documents, .* 10 for training and 0 for validation, .* at least 2 "):
        prepare(few, tmp_path / "corpus")
    with pytest.raises(UserError, match=r"10 documents, .* 10 for training and 0 for validation, .* at least 1\."):
        prepare(replace(few, objective="full-sentences"), tmp_path / "other")


def test_no_document_for_training(config: CorpusConfig, tmp_path: Path) -> None:
    """The vocabulary would be trained on nothing, but there is text."""
    (tmp_path / "few.txt").write_text("\n\n".join(f"Document number {i} is here." for i in range(3)))
    few = replace(config, files=[str(tmp_path / "few.txt")], validation_fraction=1 - 1e-9)
    with pytest.raises(UserError, match=r"3 documents, .* leaves 0 for training and 3 for validation, .* at least 2 "):
        prepare(few, tmp_path / "corpus")


def test_documents_of_one_token_have_no_order(config: CorpusConfig, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\n\n".join(f"{letter}" * 30 for letter in "abcdefghijklmnopqrst"))
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    given = replace(config, files=[str(tmp_path / "words.txt")], tokenizer=str(tmp_path / "vocab.txt"))
    words = replace(given, objective="sop", validation_fraction=0.5)
    with pytest.raises(UserError, match=r"documents for train give no samples: each is a single token, but"):
        prepare(words, tmp_path / "corpus")


def test_nothing_is_left_when_nothing_was_done(config: CorpusConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokenizer: there is no file"):
        prepare(replace(config, tokenizer=str(tmp_path / "absent")), tmp_path / "corpus")
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(UserError, match=r"The source text .*empty\.txt holds no text, but a corpus needs some\.$"):
        prepare(replace(config, files=[str(tmp_path / "empty.txt")]), tmp_path / "corpus")
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]
    (tmp_path / "short.txt").write_text("hi\n\nho\n\nhi ho\n")
    with pytest.raises(UserError, match=r"needs some; the rule 'document: short' dropped 3 of its texts\.$"):
        prepare(replace(config, files=[str(tmp_path / "short.txt")]), tmp_path / "corpus")


def test_merge_from_another_folder_says_where_it_looks(
    config: CorpusConfig, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(text_file.parent)
    prepare_part(replace(config, files=[text_file.name]), tmp_path / "corpus", 1, 1)
    monkeypatch.chdir(tmp_path / "else")
    with pytest.raises(UserError, match=rf"no file matches {text_file.name} in the current folder, {tmp_path}/else\.$"):
        merge(tmp_path / "corpus")


def test_unfinished_work_on_another_corpus_is_left_alone(config: CorpusConfig, tmp_path: Path) -> None:
    prepare_part(config, tmp_path / "corpus", 1, 1)
    with pytest.raises(UserError, match=r"corpus\.partial holds the unfinished work .* vocab_size 400, not 500;"):
        prepare(replace(config, vocab_size=500), tmp_path / "corpus")
    assert merge(tmp_path / "corpus").manifest["config"]["vocab_size"] == 400
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_command_line(text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "corpus.yaml").write_text(f"source: text\nfiles: [{text_file}]\nvocab_size: 300\nlengths: [32]\n")
    out = tmp_path / "out"
    main(["--config", str(tmp_path / "corpus.yaml"), "--out", str(out), "--lengths", "[48]", "--max_megabytes", "1"])
    config = Corpus.open(out).manifest["config"]
    assert (config["lengths"], config["vocab_size"], config["max_megabytes"]) == ([48], 300, 1.0)
    printed = capsys.readouterr().out
    assert "samples of length 48" in printed and "unigram cross-entropy" in printed and str(out) in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["out"]),
        (["--out", "x", "--vocab_size", "many"], ["vocab_size", "many"]),
        (["--out", "x", "--sead", "1"], ["--sead"]),
        (["--out", "x", "--source", "web"], ["source", "web", "pydocs"]),
        (["--out", "x", "--lengths", "[4]"], ["lengths", "4", "at least 8"]),
        (["--out", "x", "--config", "absent.yaml"], ["absent.yaml", "cannot be read"]),
    ],
)
def test_bad_argument_is_one_sentence(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        main(arguments)
    assert all(word in str(raised.value) for word in words) and "\n" not in str(raised.value)
