"""Data sets of made-up words in the official layouts, and a tiny BERT with a vocabulary for them."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForPreTraining, BertTokenizer

GOOD, BAD = ["good", "fine", "glad", "sunny"], ["bad", "poor", "sad", "rainy"]
NEUTRAL = ["tree", "river", "house", "stone", "walk", "paint", "old", "small", "quick", "green", "table", "sings"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PLAIN = [*GOOD, *BAD, *NEUTRAL, "the", "a", "an", "who", "what", "is", "not", ".", ",", "?", "-", "'"]
SENTENCES = ["sentence1", "sentence2"]
LETTERS = list("abcdefghijklmnopqrstuvwxyz0123456789")
VOCABULARY = [*SPECIAL, *PLAIN, *LETTERS, *[f"##{letter}" for letter in LETTERS]]


def tiny_tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={token: index for index, token in enumerate(VOCABULARY)}, do_lower_case=True)


def tiny_bert(**changes: object) -> BertForPreTraining:
    """Three layers of 4 heads and 64 neurons."""
    torch.manual_seed(0)
    fields: dict[str, Any] = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        # So large that, untrained, the first token sees the others at all.
        "initializer_range": 0.1,
    }
    return BertForPreTraining(BertConfig(**(fields | changes)))


def save_tiny_bert(folder: Path, **changes: object) -> Path:
    tiny_bert(**changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def sentence(generator: random.Random, positive: bool) -> str:
    """Five neutral words and one that gives the label away."""
    words = [*generator.choices(NEUTRAL, k=5), generator.choice(GOOD if positive else BAD)]
    generator.shuffle(words)
    return " ".join(words)


def table(path: Path, header: list[str] | None, rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(row) for row in ([header] if header else []) + rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_sst2(folder: Path, train: int = 96, dev: int = 48) -> None:
    generator = random.Random(0)
    for name, count in (("train", train), ("dev", dev)):
        labels = [index % 2 for index in range(count)]
        rows = [[sentence(generator, label == 1), str(label)] for label in labels]
        table(folder / "SST-2" / f"{name}.tsv", ["sentence", "label"], rows)
    rows = [[str(index), sentence(generator, index % 3 == 0)] for index in range(20)]
    table(folder / "SST-2" / "test.tsv", ["index", "sentence"], rows)


def write_stsb(folder: Path, train: int) -> None:
    """Pairs whose score is that of the words they have in common; so every update has another mean."""
    generator = random.Random(3)
    rows = []
    for index in range(train):
        first, second = (generator.choices(NEUTRAL, k=5) for _ in range(2))
        rows.append([" ".join(first), " ".join(first[: index % 6] + second[index % 6 :]), f"{index % 6:.3f}"])
    for name in ("train", "dev"):
        table(folder / "STS-B" / f"{name}.tsv", [*SENTENCES, "score"], rows)


def write_two_word_texts(folder: Path, train: int) -> None:
    """CoLA with texts of two words, and every third of none: so short that a few of them may have no masked token."""
    generator = random.Random(4)
    texts = [" ".join(generator.choices(NEUTRAL, k=0 if index % 3 == 2 else 2)) for index in range(train)]
    for name in ("train", "dev"):
        table(folder / "CoLA" / f"{name}.tsv", None, [["made up", "1", "", text] for text in texts])


def write_all_glue(folder: Path) -> None:
    """Every task with a few rows, in the columns of the official files."""
    generator = random.Random(1)

    def text() -> str:
        return sentence(generator, generator.random() < 0.5)

    write_sst2(folder, 12, 6)
    numbered = range(6)
    binary = [str(index % 2) for index in numbered]
    entailment = [("entailment", "not_entailment")[index % 2] for index in numbered]
    for name in ("train", "dev"):
        cola = [["gj04", label, "*" if label == "0" else "", text()] for label in binary]
        table(folder / "CoLA" / f"{name}.tsv", None, cola)
        mrpc = [[label, "1", "2", text(), text()] for label in binary]
        header = ["\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
        table(folder / "MRPC" / f"{name}.tsv", header, mrpc)
        qqp = [[str(i), "1", "2", text(), text(), binary[i]] for i in numbered]
        header = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]
        table(folder / "QQP" / f"{name}.tsv", header, qqp)
        pairs = [[str(i), text(), text(), entailment[i]] for i in numbered]
        table(folder / "QNLI" / f"{name}.tsv", ["index", "question", "sentence", "label"], pairs)
        table(folder / "RTE" / f"{name}.tsv", ["index", "sentence1", "sentence2", "label"], pairs)
        wnli = [[str(i), text(), text(), binary[i]] for i in numbered]
        table(folder / "WNLI" / f"{name}.tsv", ["index", "sentence1", "sentence2", "label"], wnli)
        stsb = [[str(i), "main", "f", "2012", "o", "s", "s", text(), text(), f"{i * 0.75:.3f}"] for i in numbered]
        header = ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2"]
        table(folder / "STS-B" / f"{name}.tsv", [*header, "score"], stsb)
    table(folder / "STS-B" / "test.tsv", header, [row[:-1] for row in stsb])
    table(folder / "RTE" / "test.tsv", ["index", "sentence1", "sentence2"], [row[:-1] for row in pairs])
    write_mnli(folder, text)


def write_mnli(folder: Path, text) -> None:  # type: ignore[no-untyped-def]
    unused = ["promptID", "pairID", "genre", *[f"sentence{i}_{kind}_parse" for kind in ("binary", "s") for i in (1, 2)]]
    labels = ["entailment", "neutral", "contradiction"]
    header = ["index", *unused, "sentence1", "sentence2"]
    rows = [[str(i), *["-"] * len(unused), text(), text(), labels[i % 3]] for i in range(9)]
    table(folder / "MNLI" / "train.tsv", [*header, "label1", "gold_label"], [[*row, row[-1]] for row in rows])
    for half in ("matched", "mismatched"):
        five = [[*row[:-1], *[row[-1]] * 6] for row in rows]
        table(folder / "MNLI" / f"dev_{half}.tsv", [*header, *[f"label{i}" for i in range(1, 6)], "gold_label"], five)
        table(folder / "MNLI" / f"test_{half}.tsv", header, [row[:-1] for row in rows])


def write_names(folder: Path, train: int = 96, validation: int = 32) -> None:
    """Sentences in which people are the good words, of one or two words, and places the bad ones."""
    generator = random.Random(5)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("validation", validation)):
        rows = []
        for _ in range(count):
            tokens: list[str] = []
            tags: list[str] = []
            for _ in range(4):
                kind, words = generator.choice([("PER", GOOD), ("LOC", BAD), ("", NEUTRAL)])
                first, second = words[: len(words) // 2], words[len(words) // 2 :]
                named = [generator.choice(first), *generator.choices(second, k=generator.randint(0, 1))]
                chosen = [*named, generator.choice(NEUTRAL)]
                inside = [f"{'I' if place else 'B'}-{kind}" if kind else "O" for place in range(len(chosen) - 1)]
                tokens, tags = [*tokens, *chosen], [*tags, *inside, "O"]
            rows.append({"tokens": tokens, "tags": tags})
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_reviews(folder: Path, train: int = 96, validation: int = 32) -> None:
    """A table of texts with commas, and labels as words."""
    generator = random.Random(6)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("validation", validation)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["number", "review", "verdict"])
            for index in range(count):
                text = sentence(generator, index % 2 == 1).replace(" ", ", ", 1)
                writer.writerow([index, text, ("against", "in favour")[index % 2]])


def write_squad(folder: Path, train: int = 24, dev: int = 8) -> None:
    """Questions whose answer is the one word of a long context that stands after `the`."""
    generator = random.Random(2)
    for name, count in (("train-v1.1.json", train), ("dev-v1.1.json", dev)):
        paragraphs = []
        for index in range(count):
            words = generator.choices(NEUTRAL, k=40)
            place, answer = generator.randrange(40), generator.choice(GOOD)
            before = " ".join([*words[:place], "the", ""])
            context = before + " ".join([answer, *words[place:]]) + " ."
            answers = [{"text": answer, "answer_start": len(before)}] * (3 if name.startswith("dev") else 1)
            question = {"id": f"{name}-{index}", "question": "what is good ?", "answers": answers}
            paragraphs.append({"context": context, "qas": [question]})
        content = {"version": "1.1", "data": [{"title": "made up", "paragraphs": paragraphs}]}
        (folder / "SQuAD").mkdir(parents=True, exist_ok=True)
        (folder / "SQuAD" / name).write_text(json.dumps(content))
