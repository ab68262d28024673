"""Whether a corpus that is there is the one that is asked for."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from earlybert.core.errors import UserError
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.prepare import prepare, prepare_part
from earlybert.data_prep.samples.corpus import Corpus


def test_same_configuration_already_exists_and_another_is_refused(
    config: CorpusConfig, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(config, corpus.directory).fingerprint == corpus.fingerprint
    assert "already exists" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"with vocab_size 400, not 500"):
        prepare(replace(config, vocab_size=500), corpus.directory)


@pytest.mark.parametrize("field", ["tokenizer", "add_tokens"])
def test_changed_file_of_the_vocabulary_is_refused(
    field: str, config: CorpusConfig, corpus: Corpus, tmp_path: Path
) -> None:
    shutil.copy(corpus.directory / "tokenizer" / "tokenizer.json", tmp_path)
    (tmp_path / "words.txt").write_text("Abracadabra\n")
    files = {"tokenizer": tmp_path / "tokenizer.json", "add_tokens": tmp_path / "words.txt"}
    given = replace(config, tokenizer=str(files["tokenizer"]), add_tokens=str(files["add_tokens"]))
    made = prepare(given, tmp_path / "made")
    files[field].touch()
    assert prepare(given, made.directory).fingerprint == made.fingerprint
    content = files[field].read_text()
    files[field].write_text(content + "\n")
    changed = rf"made holds a corpus with the {field} .* as it was before {files[field].name} was changed; name another"
    with pytest.raises(UserError, match=changed):
        prepare(given, made.directory)
    # Older versions wrote the checksum of the file alone.
    manifest = json.loads((made.directory / "manifest.json").read_text())
    stated = manifest["vocabulary"]["given_sha256"]
    manifest["vocabulary"]["given_sha256"] = {name: next(iter(hashes.values())) for name, hashes in stated.items()}
    (made.directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=changed):
        prepare(given, made.directory)
    # One that is gone cannot be compared.
    files[field].unlink()
    prepare(given, made.directory)


@pytest.mark.parametrize("name", ["given", "given/vocab.txt"], ids=["a folder", "a vocabulary"])
def test_changed_settings_of_a_vocabulary_are_refused(
    name: str, config: CorpusConfig, corpus: Corpus, tmp_path: Path
) -> None:
    """What stands in tokenizer_config.json is read, so it counts like the vocabulary; other files do not."""
    (tmp_path / "given").mkdir()
    vocabulary = sorted(corpus.tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    (tmp_path / "given" / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocabulary))
    settings = tmp_path / "given" / "tokenizer_config.json"
    content = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "strip_accents": True}
    settings.write_text(json.dumps(content))
    given = replace(config, tokenizer=str(tmp_path / name))
    prepare_part(given, tmp_path / "begun", 1, 1)
    prepare(given, tmp_path / "made")
    (tmp_path / "given" / "README.md").write_text("A vocabulary.")
    prepare(given, tmp_path / "made")
    settings.write_text(json.dumps(content | {"strip_accents": False}))
    with pytest.raises(UserError, match=r"made holds a corpus with the tokenizer .* before tokenizer_config\.json was"):
        prepare(given, tmp_path / "made")
    assert prepare(given, tmp_path / "begun").tokenizer.backend_tokenizer.normalizer.normalize_str("Bär") == "bär"
    settings.unlink()
    with pytest.raises(UserError, match=r"made holds a corpus with the tokenizer .* before tokenizer_config\.json was"):
        prepare(given, tmp_path / "made")
    # Older versions looked at the named file alone.
    manifest = json.loads((tmp_path / "made" / "manifest.json").read_text())
    hashes = manifest["vocabulary"].pop("given_sha256")["tokenizer"]
    if name.endswith(".txt"):
        manifest["vocabulary"]["given_sha256"] = {"tokenizer": hashes["vocab.txt"]}
    (tmp_path / "made" / "manifest.json").write_text(json.dumps(manifest))
    prepare(given, tmp_path / "made")
