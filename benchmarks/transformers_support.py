"""What works in transformers with a narrow export, the same network padded with zeros, and plain BERT.

    python benchmarks/transformers_support.py

Makes three small models with random weights in a temporary folder, runs every row on each, and prints a table. The two
exports of the same network must give the same scores to rounding; the table has the largest difference. Exit status 1
if a row fails. Rows that need a package or a GPU that is not there say so.
"""

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor
from transformers import BertTokenizer, PreTrainedModel
from transformers.utils import logging
from transformers_rows import FLASH, POSITIONS, ROWS, SPECIAL, WORDS, Export, NotHere

from earlybert.core.text import markdown_table
from earlybert.pretrain.checkpoint.model_folder import write_model_folder
from earlybert.pretrain.network.bert_format import to_bert, to_earlybert
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.parameters import parameter_shapes
from earlybert.pretrain.network.surgery import narrow_weights, widen_weights
from earlybert.pretrain.ticket.drawing import random_ticket
from earlybert.pretrain.ticket.ticket import TicketRule, full_shape, narrow_config

COLUMNS = ("narrow", "padded", "plain BERT")
# Of scores around 1 after other sums of the same numbers: in fp32, and in bf16, which flash attention needs.
TOLERANCE, BF16_TOLERANCE = 1e-4, 0.1


def make_exports(folder: Path) -> dict[str, Export]:
    """A narrow network with a width of its own in every layer, the same padded, and a full one."""
    vocabulary = SPECIAL + WORDS + list("abcdefghijklmnopqrstuvwxyz") + [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)}, do_lower_case=True)
    full = NetworkConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=POSITIONS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    ticket = random_ticket(full_shape(full), TicketRule(head_ratio=0.25, neuron_ratio=0.4, width_multiple=1), seed=1)
    weights, narrow = random_weights(full), narrow_config(full, ticket)
    cut = narrow_weights(full, weights, ticket)
    models: dict[str, tuple[PreTrainedModel, list[list[int]]]] = {
        "narrow": (to_earlybert(narrow, cut), [list(range(len(heads))) for heads in ticket.heads]),
        "padded": (to_bert(full, widen_weights(full, cut, ticket)), [list(heads) for heads in ticket.heads]),
        "plain BERT": (to_bert(full, weights), [list(heads) for heads in ticket.heads]),
    }
    exports = {}
    for name, (model, kept) in models.items():
        exports[name] = Export(folder / name.replace(" ", "-"), kept)
        write_model_folder(model, tokenizer, "", exports[name].folder)
    return exports


def random_weights(config: NetworkConfig) -> dict[str, Tensor]:
    """Large enough that every unit matters."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        noise = 0.2 * torch.randn(shape, generator=generator)
        weights[name] = 1 + noise if name.endswith("LayerNorm.weight") else noise
    return weights


@dataclass(frozen=True)
class Result:
    """One cell: what it says, and whether it failed."""

    text: str
    failed: bool = False


def results(name: str, exports: dict[str, Export]) -> list[Result]:
    """A row's cells, one for each of COLUMNS."""
    found: dict[str, list[Tensor]] = {}
    cells = []
    for column in COLUMNS:
        try:
            found[column] = [tensor.detach() for tensor in ROWS[name](exports[column])]
            cells.append(Result("yes"))
        except NotHere as reason:
            cells.append(Result(str(reason)))
        # Whatever a library raises, the row has failed.
        except Exception as error:
            cells.append(
                Result(f"**no**: {type(error).__name__}: {str(error).strip().splitlines()[0][:80]}", failed=True)
            )
    if "narrow" in found and "padded" in found:
        tolerance = BF16_TOLERANCE if FLASH in name else TOLERANCE
        cells[0] = _compared(found["narrow"], found["padded"], tolerance)
    return cells


def _compared(narrow: list[Tensor], padded: list[Tensor], tolerance: float) -> Result:
    pairs = list(zip(narrow, padded, strict=True))
    if any(ours.shape != theirs.shape for ours, theirs in pairs):
        return Result("**no**: other shapes than the padded export's", failed=True)
    difference = max(float((ours.double() - theirs.double()).abs().max()) for ours, theirs in pairs)
    if not difference <= tolerance:
        return Result(f"**no**: {difference:.1e} off", failed=True)
    return Result(f"yes, {difference:.0e}" if difference else "yes, equal")


def table(exports: dict[str, Export]) -> Iterator[tuple[str, list[Result]]]:
    for name in ROWS:
        yield name, results(name, exports)


def main() -> None:
    warnings.simplefilter("ignore", FutureWarning)  # of names that transformers 6 will not have
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_float32_matmul_precision("highest")
    with tempfile.TemporaryDirectory() as folder:
        rows = list(table(make_exports(Path(folder))))
    print(markdown_table(("", *COLUMNS), [(name, *(cell.text for cell in cells)) for name, cells in rows]))
    sys.exit(any(cell.failed for _, cells in rows for cell in cells))


if __name__ == "__main__":
    main()
