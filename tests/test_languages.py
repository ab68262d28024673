"""Text in other languages than English: where sentences end, and that nothing of a word is lost on the way."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml

from earlybert.data_prep.config import CorpusConfig, MixedSource
from earlybert.data_prep.prepare import prepare
from tests.conftest import run_training, small_recipe

GERMAN = (
    "Die Patientin wurde am {}. Mai von Dr. Weber untersucht, u. a. wegen Fieber, d. h. seit ca. {} Tagen. "
    "Sie nahm z. B. Paracetamol ein. Am 12. Juni folgte die Kontrolle durch Prof. Klein. "
    "Der Befund war gut. Sie wurde entlassen."
)
PARAGRAPHS = {
    "de": (
        "Frau Größ klagte über Übelkeit und Müdigkeit.",
        "Der Arzt prüfte den Puls, die Lunge und das Herz.",
        "Gegen die Schmerzen half ein warmes Bad.",
        "Nach {} Tagen fühlte sie sich wieder kräftig.",
        "Die Ärztin schloss die Akte Nummer {}.",
    ),
    "hi": (
        "मरीज को तीन दिन से बुखार और खांसी है।",
        "डॉक्टर ने उसकी नब्ज और फेफड़ों की जाँच की।",
        "उसे आराम करने और खूब पानी पीने को कहा गया।",
        "{} दिन बाद उसकी तबीयत ठीक हो गई।",
        "नर्स ने फाइल संख्या {} बंद कर दी।",
    ),
    "zh": (
        "病人发烧咳嗽已经三天了。",
        "医生检查了他的脉搏和肺部。",
        "护士让他多休息，多喝水。",
        "{}天以后他的身体好了。",
        "第{}号病历已经合上了！",
    ),
    "th": (
        "ผู้ป่วยมีไข้และไอมาสามวันแล้ว",
        "หมอตรวจชีพจรและปอดของเขา",
        "พยาบาลบอกให้เขาพักผ่อนและดื่มน้ำมากๆ",
        "หลังจาก {} วันเขาก็หายดี",
        "แฟ้มหมายเลข {} ถูกปิดแล้ว",
    ),
}


def documents(language: str, count: int = 120) -> list[str]:
    """The sentences of the paragraph in other orders, each document with a number of its own."""
    sentences = PARAGRAPHS[language]
    parts = [[*sentences[number % 5 :], *sentences[: number % 5]] for number in range(count)]
    # Thai has no full stops: there a line is a sentence.
    space = {"zh": "", "th": "\n"}.get(language, " ")
    return [space.join(part).format(number, number) for number, part in enumerate(parts, 10)]


def test_every_source_of_a_mix_has_its_language(tmp_path: Path) -> None:
    """In German, "3. Mai" and "12. Juni" end no sentence; English takes both for two."""
    mix = []
    for language, first in (("de", 1), ("en", 101)):
        text = "\n\n".join(GERMAN.format(number, number) for number in range(first, first + 40))
        (tmp_path / f"{language}.txt").write_text(text)
        files = [str(tmp_path / f"{language}.txt")]
        mix.append(MixedSource(name=language, source="text", files=files, language=language))
    config = CorpusConfig(source="mix", mix=mix, vocab_size=200, lengths=[32], validation_fraction=0.2)
    splits = prepare(config, tmp_path / "corpus").manifest["counts"].values()
    found = {name: sum(split["sources"][name]["sentences"] for split in splits) / 40 for name in ("de", "en")}
    assert found == {"de": 5, "en": 7}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "kind"), [("de", "wordpiece"), ("hi", "wordpiece"), ("zh", "wordpiece"), ("th", "unigram")]
)
def test_from_text_to_filled_masks(language: str, kind: str, tmp_path: Path) -> None:
    """Prepare, three training steps, export, fill-mask: the tokens joined are the text."""
    from transformers import AutoTokenizer, pipeline

    texts = documents(language)
    (tmp_path / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    recipe: dict[str, Any] = small_recipe(tmp_path / "text.txt") | {"plan": ["phase1"], "export": ["bert"]}
    recipe["corpus"] |= {"language": language, "tokenizer_kind": kind, "vocab_size": 256}
    recipe["phase1"]["steps"] = 3
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    status, output = run_training(tmp_path, "--config", "recipe.yaml", "--run-dir", "run")
    assert status == 0, output

    export = str(tmp_path / "run" / "export" / "bert")
    tokenizer: Any = AutoTokenizer.from_pretrained(export)
    fill: Any = pipeline("fill-mask", model=export)
    for sentence in (sentence.format(7, 12) for sentence in PARAGRAPHS[language]):
        expected = unicodedata.normalize("NFKC" if kind == "unigram" else "NFC", sentence).lower()
        ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids).replace(" ", "") == expected.replace(" ", "")
        masked = [*ids[:2], tokenizer.mask_token_id, *ids[3:]]
        best = fill(tokenizer.decode(masked), top_k=1)[0]
        filled = tokenizer.decode([*ids[:2], best["token"], *ids[3:]])
        assert best["sequence"].replace(" ", "") == filled.replace(" ", "")
