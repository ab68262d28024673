"""The folder under `corpora/` that a recipe's corpus has: another one when a file that it is made from has changed."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from earlybert.core.files import content_hash
from earlybert.data_prep.config import CorpusConfig
from earlybert.pretrain.plan.corpora import corpus_directory
from earlybert.pretrain.plan.recipe import Recipe, load_recipe, recipe_path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("A sentence.\n")
    return tmp_path / "text.txt"


def recipe_with(text: Path, **changes: Any) -> Recipe:
    recipe = load_recipe(recipe_path("quickstart"), [])
    return dataclasses.replace(recipe, corpus=CorpusConfig(source="text", files=[str(text)], **changes))


@pytest.mark.parametrize("field", ["tokenizer", "add_tokens"])
def test_an_edited_file_of_the_vocabulary_makes_another_corpus(field: str, text: Path, tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("[PAD]\n")
    recipe = recipe_with(text, **{field: str(file)})
    before = corpus_directory(recipe)
    assert corpus_directory(recipe) == before
    file.write_text("[PAD]\n[UNK]\n")
    assert corpus_directory(recipe) != before


def test_corpora_of_older_versions_are_found(text: Path, tmp_path: Path) -> None:
    """Those whose vocabulary is from no file; in folders, as runs are, much changes that is no tokenizer."""
    state = text.stat()
    for changes in ({}, {"tokenizer": "someone/bert"}, {"tokenizer": str(tmp_path)}):
        recipe = recipe_with(text, **changes)
        known = [recipe.corpus.as_dict(), [(str(text), state.st_size, state.st_mtime_ns)]]
        assert corpus_directory(recipe) == Path("corpora") / f"text-{content_hash(known)[:12]}"
