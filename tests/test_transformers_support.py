"""benchmarks/transformers_support.py: every row on the narrow export, the padded one and plain BERT."""

import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers_rows
import transformers_support
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from transformers_rows import ROWS, Export
from transformers_support import COLUMNS, make_exports, results


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Export]:
    return make_exports(tmp_path_factory.mktemp("exports"))


@pytest.mark.parametrize("name", ROWS)
def test_every_row_works(name: str, exports: dict[str, Export]) -> None:
    torch.set_float32_matmul_precision("highest")
    cells = results(name, exports)
    if any(cell.text.startswith("not run") for cell in cells):
        pytest.skip(cells[0].text)
    assert len(cells) == len(COLUMNS) and not any(cell.failed for cell in cells), cells


def test_the_exports_are_of_a_network_that_was_cut(exports: dict[str, Export]) -> None:
    """So that equal scores say something: other shapes than plain BERT's, and other scores."""
    narrow, plain = (transformers_rows.load(AutoModel, exports[name]) for name in ("narrow", "plain BERT"))
    assert narrow.config.heads == [3, 3, 3] and len(set(narrow.config.neurons)) == 3
    assert sum(narrow.config.neurons) == 3 * 48 - round(0.4 * 3 * 48)
    scores = [transformers_rows.auto_model(exports[name])[0] for name in ("narrow", "plain BERT")]
    assert float((scores[0] - scores[1]).abs().max()) > 0.1
    assert narrow.num_parameters() < plain.num_parameters()


def test_other_scores_are_a_failure(exports: dict[str, Export], tmp_path: Path) -> None:
    shutil.copytree(exports["narrow"].folder, tmp_path / "narrow")
    file = tmp_path / "narrow" / "model.safetensors"
    weights = load_file(file)
    weights["bert.encoder.layer.2.output.dense.bias"][0] += 0.1
    save_file(weights, file, metadata={"format": "pt"})
    changed = exports | {"narrow": Export(tmp_path / "narrow", exports["narrow"].kept)}
    narrow, padded, _ = results("`AutoModel`", changed)
    assert narrow.failed and narrow.text.endswith("off") and not padded.failed
    broken = exports | {"padded": Export(tmp_path / "nothing", exports["padded"].kept)}
    narrow, padded, _ = results("`AutoModel`", broken)
    assert padded.failed and padded.text.startswith("**no**: ") and not narrow.failed


def test_a_failing_row_is_the_exit_status(
    exports: dict[str, Export], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(export: Export) -> list[torch.Tensor]:
        if os.path.basename(export.folder) == "narrow":
            raise ValueError("no such thing")
        return []

    monkeypatch.setattr(transformers_support, "ROWS", {"one": refuses})
    monkeypatch.setattr(transformers_support, "make_exports", lambda _: exports)
    with pytest.raises(SystemExit) as ended:
        transformers_support.main()
    assert ended.value.code == 1
    assert "| one | **no**: ValueError: no such thing | yes | yes |" in capsys.readouterr().out
