"""What a layout (micro-batch, ranks) may not change: an update's loss, its masks, its L1 term, what a search records.

Run as a script under torchrun it trains every case; the tests compare what rank 0 has written.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from earlybert.core.ranks import rank
from earlybert.finetune import methods
from earlybert.finetune.cell import open_task
from earlybert.finetune.config import Settings, TaskSettings
from earlybert.finetune.pretrained import task_config
from earlybert.finetune.tasks.registry import TASKS
from earlybert.finetune.training import TimedTrainer
from earlybert.pretrain.checkpoint.pretrained import open_pretrained
from earlybert.pretrain.ticket.search import RankingName, load_snapshot, recorded_steps, snapshot_path
from earlybert.pretrain.ticket.ticket import TicketRule
from tests.conftest import BIN, free_port, start
from tests.finetune.made_up import write_names, write_stsb, write_two_word_texts

RATE = 1e-3
# In the folder of a case, beside the recordings of its search.
WEIGHTS = "weights.safetensors"


class Case(NamedTuple):
    """What is trained: so many rows of a task, on its own loss or on masked tokens; what units are ranked by."""

    task: str
    examples: int
    objective: str = "task"
    ranking: RankingName = "coefficient"


# The last update of an epoch has five examples or one, which is fewer than there are ranks.
CASES = {
    "classes": Case("SST-2", 21),
    "numbers": Case("STS-B", 21),
    "answers": Case("SQuAD", 21),
    "one left": Case("SST-2", 17),
    "fewer than a batch": Case("STS-B", 3),
    "masked tokens": Case("CoLA", 21, "mlm"),
    "tags": Case("token-classification", 21),
    "importance": Case("SST-2", 21, ranking="importance"),
}


def settings(case: Case, micro_batch: int | None, **changes: Any) -> TaskSettings:
    fields: dict[str, Any] = {
        "draw": TicketRule(head_ratio=0.25, neuron_ratio=0.4, width_multiple=1),
        "dropout": 0.0,
        "batch_size": 8,
        "micro_batch": micro_batch,
        "learning_rate": RATE,
        "epochs": 2.0,
        "search_epochs": 2.0,
        "search_objective": case.objective,
        "ranking": case.ranking,
        "lambda_heads": 0.01,
        "lambda_neurons": 0.01,
        "max_length": 48,
        "doc_stride": 16,
        "max_query_length": 8,
        "save_every": 1000,
    }
    return Settings(**(fields | changes)).for_task(TASKS[case.task].defaults)


def search(bert: Path, data: Path, folder: Path, case: Case, used: TaskSettings) -> None:
    """Trains the full network with coefficients for two epochs; rank 0 writes all of its weights."""
    pretrained = open_pretrained(str(bert))
    names = data / "names"  # only tags are read from these files
    used = replace(used, train=str(names / "train.jsonl"), validation=str(names / "validation.jsonl"))
    task = open_task(TASKS[case.task], data, pretrained, used)
    rows = task.train(None)[: case.examples]
    kept: list[PreTrainedModel] = []
    config = task_config(pretrained, task.head, used.dropout)
    original = methods.train

    def keeping(trainer: TimedTrainer) -> Any:
        assert isinstance(trainer.model, PreTrainedModel)
        kept.append(trainer.model)
        return original(trainer)

    methods.train = keeping
    try:
        methods.search(pretrained, config, task.model_class, rows, used, folder, seed=7)
    finally:
        methods.train = original
    if rank() == 0:
        save_file({name: value.clone() for name, value in kept[0].state_dict().items()}, folder / WEIGHTS)


# They move all scores of a question alike, which softmax ignores: their gradient is rounding, and Adam's step anything.
WITHOUT_GRADIENT = {"answers": {"qa_outputs.bias", "layers.2.feed_forward.LayerNorm.bias"}}


def require_close(name: str, folder: Path, other: Path) -> None:
    """The weights at the end, and the last recording."""
    found, expected = (load_file(each / WEIGHTS) for each in (folder, other))
    assert found.keys() == expected.keys()
    compared = found.keys() - WITHOUT_GRADIENT.get(name, set())
    assert len(compared) > 30
    assert max((found[key] - expected[key]).abs().max().item() for key in compared) < 2e-5
    searches = [each / "search" for each in (folder, other)]
    ours, theirs = (load_snapshot(snapshot_path(each, recorded_steps(each)[-1])) for each in searches)
    assert ours.step == theirs.step
    for units, others in ((ours.heads_LU, theirs.heads_LU), (ours.neurons_LU, theirs.neurons_LU)):
        np.testing.assert_allclose(units, others, rtol=1e-3, atol=1e-4 * others.max())


@pytest.fixture(scope="module")
def tasks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name in ("SST-2", "SQuAD"):
        (folder / name).symlink_to(data / name)
    write_stsb(folder, 21)
    write_two_word_texts(folder, 21)
    write_names(folder / "names")
    return folder


Trained = Callable[[str, int | None], Path]


@pytest.fixture(scope="module")
def trained(bert: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The folder of a case by its micro-batch, on one rank; each is trained once."""
    known: dict[tuple[str, int | None], Path] = {}

    def folder(name: str, micro_batch: int | None) -> Path:
        if (name, micro_batch) not in known:
            known[name, micro_batch] = tmp_path_factory.mktemp("trained")
            search(bert, tasks, known[name, micro_batch], CASES[name], settings(CASES[name], micro_batch))
        return known[name, micro_batch]

    return folder


@pytest.mark.parametrize("name", CASES)
def test_micro_batches_do_not_change_what_is_trained(trained: Trained, name: str) -> None:
    """Before, 21 examples in batches of 8 ended 3e-3 apart, and masked tokens further."""
    for micro_batch in (4, 1):
        require_close(name, trained(name, micro_batch), trained(name, None))


@pytest.fixture(scope="module")
def on_two_ranks(bert: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of all cases with micro-batches of 2."""
    out = tmp_path_factory.mktemp("two_ranks")
    launcher = [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", free_port()]
    process = start(
        [*launcher, "-m", "tests.finetune.test_finetuning_layouts", str(bert), str(tasks), str(out)],
        Path(__file__).parents[2],
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return out


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_what_one_rank_trains(trained: Trained, on_two_ranks: Path, name: str) -> None:
    require_close(name, on_two_ranks / name, trained(name, None))


def main(bert: Path, tasks: Path, out: Path) -> None:
    torch.set_num_threads(1)
    for name, case in CASES.items():
        search(bert, tasks, out / name, case, settings(case, micro_batch=2))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
