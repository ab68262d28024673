"""Hidden words: they come from held-out text, and the guesses are those of the exported network."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer, BertForMaskedLM

from earlybert.core import cli
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.commands import fill_mask
from earlybert.pretrain.report import hidden_words

SHOWN = re.compile(r"  (?P<sentence>.+)\n      guesses: (?P<guesses>.+?)(?:    hidden: (?P<word>.+))?\n")


def test_words_are_hidden_in_sentences_of_the_text(
    finished_run: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    outputs = []
    for _ in range(2):
        fill_mask.main([str(finished_run)])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    shown = list(SHOWN.finditer(outputs[0]))
    assert len(shown) == fill_mask.SENTENCES
    lines = (workplace / "text.txt").read_text().lower().splitlines()
    for found in shown:
        assert found["sentence"].count("[MASK]") == 1
        assert found["sentence"].replace("[MASK]", found["word"]) in lines


def test_guesses_are_the_exported_network_s(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported = finished_run / "export" / "bert"
    tokenizer = AutoTokenizer.from_pretrained(exported)
    sentence = "a b [MASK] c"
    inputs = tokenizer(sentence, return_tensors="pt")
    with torch.no_grad():
        logits_SV = BertForMaskedLM.from_pretrained(exported).eval()(**inputs).logits[0]
    row = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    probabilities, tokens = logits_SV[row].softmax(0).topk(3)
    expected = [
        f"{tokenizer.convert_ids_to_tokens(token)} {share:.0%}"
        for token, share in zip(tokens.tolist(), probabilities.tolist(), strict=True)
    ]
    fill_mask.main([str(finished_run), sentence])
    (found,) = SHOWN.finditer(capsys.readouterr().out)
    assert found["guesses"].split("  ") == expected and found["word"] is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["RUN", "no mask"], "'no mask' has 0 [MASK]"),
        # Each letter is a token, beside [CLS], [SEP] and the mask; the position table has 64.
        (["RUN", "a " * 62 + "[MASK]"], "has 65 tokens; it must have at most 64"),
        (["nowhere"], "nowhere: is not a run directory"),
    ],
)
def test_one_sentence_says_what_is_wrong(
    arguments: list[str], expected: str, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["fill-mask", *(str(finished_run) if name == "RUN" else name for name in arguments)])
    error = capsys.readouterr().err
    assert left.value.code == 2 and expected in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {"losses": ["next_sentence"]},
            "was trained with the losses ['next_sentence'], so it has no head that fills in",
        ),
        ({"data": "OTHER"}, "is not the corpus that"),
    ],
)
def test_a_run_that_no_words_can_be_asked_of(
    changed: dict[str, Any],
    expected: str,
    finished_run: Path,
    small_corpus: Corpus,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    recipe = yaml.safe_load((run / "config.yaml").read_text()) | changed
    recipe |= {"data": str(small_corpus.directory)} if "data" in changed else {}
    (run / "config.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(SystemExit) as left:
        cli.main(["fill-mask", str(run)])
    captured = capsys.readouterr()
    assert left.value.code == 2 and not captured.out
    assert expected in captured.err and captured.err.count("\n") == 1


def test_a_text_without_such_sentences_is_said_to_have_none(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hidden_words, "LONGEST", 2)
    fill_mask.main([str(finished_run)])
    assert capsys.readouterr().out.startswith("No sentence of 8 to 2 words to hide one of in the held-out text")


def test_the_command_that_it_names_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "my run (1)"
    run.mkdir()
    (run / "config.yaml").touch()
    with pytest.raises(SystemExit):
        cli.main(["fill-mask", str(run)])
    _, command = capsys.readouterr().err.split("make it with ")
    assert shlex.split(command) == ["earlybert", "export", str(run), "--out", str(run / "export" / "bert")]
