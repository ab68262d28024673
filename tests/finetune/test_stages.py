"""The search and the training stages: counts, schedules, recordings, and what the released code got wrong."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertTokenizer, DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

from earlybert.core.errors import UserError
from earlybert.core.files import read_json
from earlybert.finetune import methods, text, training
from earlybert.finetune.config import Settings, TaskSettings
from earlybert.finetune.model import IGNORED, TrainedForSequenceClassification
from earlybert.finetune.pretrained import starting_weights, task_config
from earlybert.finetune.tasks.glue import GLUE
from earlybert.finetune.tasks.registry import TASKS
from earlybert.finetune.tasks.sentences import SentenceData
from earlybert.finetune.text import Features, learnt, masker
from earlybert.finetune.training import TimedTrainer, TrainerRun, draw_step, make_trainer, train, updates
from earlybert.pretrain.checkpoint.pretrained import open_pretrained
from earlybert.pretrain.network.work import time_saved
from earlybert.pretrain.ticket.search import load_snapshot, snapshot_path
from earlybert.pretrain.ticket.ticket import TicketRule
from tests.conftest import gradient_of
from tests.finetune.made_up import VOCABULARY, save_tiny_bert, tiny_bert
from tests.finetune.reference_search import kept_batches, reference_search


def settings(task: str = "SST-2", **changes: Any) -> TaskSettings:
    rule = TicketRule(head_ratio=0.25, neuron_ratio=0.4, width_multiple=1)
    fields: dict[str, Any] = {"draw": rule, "dropout": 0.0, "max_length": 48, "doc_stride": 16, "max_query_length": 8}
    return Settings(**(fields | changes)).for_task(TASKS[task].defaults)


@pytest.fixture(scope="module")
def task(bert: Path, data: Path) -> SentenceData:
    return SentenceData(GLUE["SST-2"], data / "SST-2", open_pretrained(str(bert)).tokenizer, 48)


def searched(bert: Path, task: SentenceData, folder: Path, used: TaskSettings, rows: list[Features] | None = None):  # type: ignore[no-untyped-def]
    pretrained = open_pretrained(str(bert))
    config = task_config(pretrained, task.head, used.dropout)
    rows = rows or task.train(None)
    return methods.search(pretrained, config, task.model_class, rows, used, folder, seed=7)


def a_run(folder: Path, **changes: Any) -> TrainerRun:
    fields: dict[str, Any] = {
        "name": "training",
        "folder": folder,
        "epochs": 1.0,
        "learning_rate": 1e-3,
        "seed": 0,
    }
    return TrainerRun(**(fields | changes))


def run_trainer(
    bert: Path, task: SentenceData, run: TrainerRun, used: TaskSettings, *, searching: bool = False
) -> TimedTrainer:
    pretrained = open_pretrained(str(bert))
    config = task_config(pretrained, task.head, used.dropout)
    config = config.with_network(dataclasses.replace(config.network, searching=searching))
    model = TrainedForSequenceClassification(config)
    model.load_state_dict(starting_weights(TrainedForSequenceClassification, config, pretrained.weights, seed=1))
    return make_trainer(model, task.train(None), DataCollatorWithPadding(pretrained.tokenizer), used, run)


def test_paper_formula() -> None:
    """Both of the paper's own figures come out of it (sections 4.2 and Appendix A)."""
    assert 100 * time_saved(0.2, 2, 3, 0.7555) == pytest.approx(42.97, abs=0.005)
    assert 100 * time_saved(1, 2, 3, 0.7555) == pytest.approx(16.3, abs=0.05)


def test_defaults_are_the_papers() -> None:
    glue, squad = Settings().for_task(TASKS["QQP"].defaults), Settings().for_task(TASKS["SQuAD"].defaults)
    assert (glue.epochs, glue.learning_rate, glue.ticket_epochs, glue.ticket_learning_rate) == (3, 2e-5, 2, 4e-5)
    assert (squad.epochs, squad.learning_rate, squad.ticket_epochs, squad.ticket_learning_rate) == (2, 3e-5, 2, 3e-5)
    assert (glue.search_epochs, glue.lambda_heads, glue.lambda_neurons) == (0.2, 1e-4, 1e-4)
    assert (glue.draw.head_ratio, glue.draw.neuron_ratio) == (1 / 3, 0.4)
    assert (glue.max_length, squad.max_length, squad.doc_stride) == (128, 384, 128)


@pytest.mark.parametrize(
    ("examples", "step"), [(392702, 614), (363846, 569), (104743, 164), (67349, 105), (8551, 13), (3668, 6), (2490, 4)]
)
def test_draw_steps_are_those_of_the_released_settings(examples: int, step: int) -> None:
    """0.2 epochs of the GLUE tasks at a batch of 128."""
    assert draw_step(examples, settings(batch_size=128)) == step


def test_a_search_of_less_than_one_step_is_one_step_and_no_random_ticket(
    bert: Path, task: SentenceData, tmp_path: Path
) -> None:
    """The released code fell through to random pruning where 0.2 epochs rounded to 0 steps."""
    assert draw_step(40, settings(batch_size=128)) == 1
    ticket, cost = searched(bert, task, tmp_path, settings(batch_size=128), task.train(40))
    assert (ticket.source.kind, ticket.source.step, cost.steps) == ("search", 1, 1)


def test_one_epoch_of_search_is_one_epoch(task: SentenceData) -> None:
    """In the released code 1.0 meant the first step."""
    assert draw_step(96, settings(search_epochs=1.0, batch_size=8)) == 12


def test_recordings_are_the_coefficients_after_each_update(
    bert: Path, task: SentenceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the whole run's learning-rate curve, copied: the released code recorded before the update on GLUE and, on
    CPUs, recorded the live tensor, so that all recordings were equal."""
    batches = kept_batches(monkeypatch)
    used = settings(batch_size=8, search_epochs=0.5, learning_rate=1e-3)
    searched(bert, task, tmp_path, used)
    assert len(batches) == 6  # stops at the draw step, though the curve is that of three epochs
    assert updates(96, used, used.epochs) == 36
    for step, recorded in enumerate(reference_search(bert, batches, 36, 1e-3), start=1):
        found = load_snapshot(snapshot_path(tmp_path / "search", step))
        heads, neurons = recorded["coefficient"]
        np.testing.assert_allclose(found.heads_LU, heads, atol=2e-5)
        np.testing.assert_allclose(found.neurons_LU, neurons, atol=2e-4)
        assert np.abs(found.neurons_LU - 1).max() > 5e-4 * step


def test_a_ratio_of_zero_cuts_nothing(bert: Path, task: SentenceData, tmp_path: Path) -> None:
    """The released rule took a head out of every layer, and a neuron."""
    nothing = TicketRule(head_ratio=0.0, neuron_ratio=0.0, width_multiple=1)
    ticket, _ = searched(bert, task, tmp_path, settings(draw=nothing))
    assert ticket.realised == {"heads": 0, "neurons": 0}


def test_searching_works_without_dropout_and_leaves_the_labels_out_on_masked_tokens(
    bert: Path, task: SentenceData, tmp_path: Path
) -> None:
    """The released in-place product raised with attention dropout 0."""
    rows = task.train(None)
    for row in rows:
        row["labels"] = int(row["labels"] == 0)
    used = settings(batch_size=16, search_objective="mlm")
    first, _ = searched(bert, task, tmp_path / "first", used)
    second, _ = searched(bert, task, tmp_path / "second", used, rows)
    by_task, _ = searched(bert, task, tmp_path / "task", settings(batch_size=16))
    assert first.neurons == second.neurons != by_task.neurons


def test_masks_are_a_function_of_seed_epoch_and_row(bert: Path) -> None:
    """The library's collator drew them for a padded micro-batch, so that every layout had others."""
    tokenizer = open_pretrained(str(bert)).tokenizer
    ids = [2, *range(5, 45), 3]
    row = Features(input_ids=ids, token_type_ids=[0] * 42, labels=1)
    first = masker(tokenizer, seed=1)(row, 0, 3)
    assert first == masker(tokenizer, seed=1)(row, 0, 3)
    for seed, epoch, index in ((2, 0, 3), (1, 1, 3), (1, 0, 4)):
        assert first != masker(tokenizer, seed)(row, epoch, index)
    labels = first["labels"]
    assert isinstance(labels, list) and len(labels) == 42 and learnt(first) == 6  # 15 % of 42
    kept = [label if label != IGNORED else given for label, given in zip(labels, first["input_ids"], strict=True)]
    assert kept == ids and labels[0] == labels[-1] == IGNORED
    nothing = masker(tokenizer, seed=1)(Features(input_ids=[2, 3], token_type_ids=[0, 0]), 0, 0)
    assert learnt(row) == 1 and learnt(nothing) == 0


def test_a_search_on_masked_tokens_counts_the_vocabulary_once(
    bert: Path, task: SentenceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was counted for every row of every update, which took longer than the updates of a small network."""
    counted = []

    def counting(tokenizer: BertTokenizer) -> int:
        counted.append(tokenizer)
        return len(VOCABULARY)

    monkeypatch.setattr(text, "vocabulary_size", counting)
    searched(bert, task, tmp_path / "search", settings(batch_size=16, search_objective="mlm", search_epochs=0.5))
    assert len(counted) == 1


@pytest.mark.parametrize(("batch_size", "micro_batch"), [(16, None), (16, 4), (112, 14)])
def test_the_l1_term_counts_once_per_update(
    bert: Path, task: SentenceData, tmp_path: Path, batch_size: int, micro_batch: int | None
) -> None:
    """However many micro-batches there are, also where an epoch's 96 examples are no whole batch; the released code
    added it once for each."""
    layout: dict[str, Any] = {"batch_size": batch_size, "micro_batch": micro_batch, "max_grad_norm": 1e9}
    used = settings(lambda_heads=0.25, lambda_neurons=0.5, **layout)
    plain = settings(lambda_heads=0.0, lambda_neurons=0.0, **layout)
    gradients = []
    for name, chosen in (("with", used), ("without", plain)):
        trainer = run_trainer(bert, task, a_run(tmp_path / name, stop_after=1), chosen, searching=True)
        assert isinstance(trainer.model, torch.nn.Module)
        parameters = dict(trainer.model.named_parameters())

        class Keep(TrainerCallback):
            def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
                gradients.append({key: gradient_of(value).clone() for key, value in parameters.items()})  # noqa: B023

        trainer.add_callback(Keep())
        train(trainer)
    for name, gradient in gradients[0].items():
        added = gradient - gradients[1][name]
        expected = 0.0
        if name.endswith("coefficients"):
            expected = 0.25 if "attention" in name else 0.5
        torch.testing.assert_close(added, torch.full_like(added, expected), rtol=1e-4, atol=1e-5)


def test_every_batch_of_an_epoch_is_trained_on(
    bert: Path, task: SentenceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released SQuAD script skipped the first one."""
    seen: list[tuple[int, ...]] = []
    original = TimedTrainer.compute_loss

    def counting(self: TimedTrainer, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        seen.extend(tuple(row[row != 0].tolist()) for row in inputs["input_ids"])
        return original(self, model, inputs, *rest, **more)

    monkeypatch.setattr(TimedTrainer, "compute_loss", counting)
    cost = train(run_trainer(bert, task, a_run(tmp_path), settings(batch_size=20)))
    assert sorted(seen) == sorted(tuple(row["input_ids"]) for row in task.train(None))
    assert cost.steps == 5 and 0 < cost.compute < cost.update and cost.update * 5 < cost.clock


def test_a_cased_tokenizer_stays_cased_and_nothing_is_cached(data: Path, tmp_path: Path) -> None:
    """The released second stage lower-cased cased text, unless it found the first one's cache, which did not tell
    models apart."""
    cased = BertTokenizer(
        vocab={token: index for index, token in enumerate([*VOCABULARY, "Good", "Tree"])}, do_lower_case=False
    )
    tiny_bert(vocab_size=len(VOCABULARY) + 2).save_pretrained(tmp_path / "cased")
    cased.save_pretrained(tmp_path / "cased")
    uncased = save_tiny_bert(tmp_path / "uncased")
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    ids = {}
    for model in (tmp_path / "cased", uncased):
        pretrained = open_pretrained(str(model))
        task = SentenceData(GLUE["SST-2"], data / "SST-2", pretrained.tokenizer, 48)
        task.train_rows = type(task.train_rows)([["Good Tree"]], [1])
        ids[model.name] = task.train(None)[0]["input_ids"]
    lower = [VOCABULARY.index("good"), VOCABULARY.index("tree")]
    assert ids["cased"][1:-1] == [len(VOCABULARY), len(VOCABULARY) + 1] and ids["uncased"][1:-1] == lower
    assert before == {path: path.stat().st_mtime_ns for path in data.rglob("*")}


def test_a_bare_vocabulary_is_refused_for_it_does_not_say_its_casing(tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    with pytest.raises(UserError, match=r"needs its tokenizer.*does not say whether it is cased"):
        open_pretrained(str(tmp_path))


def test_shortened_training_costs_what_the_ticket_costs(bert: Path) -> None:
    config = task_config(open_pretrained(str(bert)), {}, 0.0).network
    rule = TicketRule(head_ratio=0.25, neuron_ratio=0.5, width_multiple=1)
    used = settings(draw=rule)
    # Multiply-adds a token and layer: 4 d^2 + 2 s d of the heads, 2 d F of the neurons, with d 32, s 48, F 64.
    heads, neurons = 4 * 32**2 + 2 * 48 * 32, 2 * 32 * 64
    ratio = (0.75 * heads + 0.5 * neurons) / (heads + neurons)
    assert methods.schedule("shortened", used, config) == (pytest.approx(0.2 + 2 * ratio), 2e-5)
    assert methods.schedule("dense", used, config) == methods.schedule("layerdrop", used, config) == (3, 2e-5)
    for method in ("earlybert", "random", "all"):
        assert methods.schedule(method, used, config) == (2, 4e-5)


def test_random_tickets_come_from_their_seed(bert: Path) -> None:
    config = task_config(open_pretrained(str(bert)), {}, 0.0).network
    first, again, other = (methods.given_ticket("random", settings(), config, seed) for seed in (1, 1, 2))
    assert first == again and first is not None and other is not None and first.neurons != other.neurons
    assert first.realised == other.realised == {"heads": 3, "neurons": 77}


def test_an_interrupted_stage_goes_on_as_if_it_had_not_been(
    bert: Path, task: SentenceData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    used = settings(batch_size=16, save_every=2, dropout=0.1)
    whole = run_trainer(bert, task, a_run(tmp_path / "whole"), used)
    assert train(whole).steps == 6

    cut = run_trainer(bert, task, a_run(tmp_path / "cut"), used)

    class Interruption(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    cut.add_callback(Interruption())
    with pytest.raises(KeyboardInterrupt):
        train(cut)
    folder = tmp_path / "cut" / "checkpoints" / "training" / "checkpoint-6"
    folder.mkdir()  # a checkpoint that was cut off
    (folder / "trainer_state.json").write_text('{"global_step": 6')
    resumed = run_trainer(bert, task, a_run(tmp_path / "cut"), used)
    assert train(resumed).steps == 6
    assert f"{folder / 'files.json'} is missing" in capsys.readouterr().err
    same_weights(whole, resumed)


def same_weights(whole: Trainer, resumed: Trainer) -> None:
    assert whole.model is not None and resumed.model is not None
    for (name, value), (_, other) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(value, other), name


CHECKPOINT = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


@pytest.fixture(scope="module")
def six_updates(bert: Path, task: SentenceData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    """A finished stage with its checkpoints after updates 4 and 6, and a folder that somebody copied."""
    folder = tmp_path_factory.mktemp("six")
    whole = run_trainer(bert, task, a_run(folder), settings(batch_size=16, save_every=2, dropout=0.1))
    train(whole)
    checkpoints = folder / "checkpoints" / "training"
    shutil.copytree(checkpoints / "checkpoint-4", checkpoints / "checkpoint-150-copy")
    return folder, whole


@pytest.mark.parametrize("name", CHECKPOINT)
@pytest.mark.parametrize("harm", ["truncated", "missing", "one bit"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    name: str,
    harm: str,
    six_updates: tuple[Path, Trainer],
    bert: Path,
    task: SentenceData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, whole = six_updates
    shutil.copytree(folder, tmp_path / "run")
    damaged = tmp_path / "run" / "checkpoints" / "training" / "checkpoint-6" / name
    content = bytearray(damaged.read_bytes())
    damaged.unlink()
    if harm == "truncated":
        damaged.write_bytes(content[: len(content) // 2])
    elif harm == "one bit":
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
    resumed = run_trainer(bert, task, a_run(tmp_path / "run"), settings(batch_size=16, save_every=2, dropout=0.1))
    assert train(resumed).steps == 6
    same_weights(whole, resumed)
    said = [line for line in capsys.readouterr().err.splitlines() if "resuming from the checkpoint before it" in line]
    assert len(said) == 1 and said[0].startswith(f"{damaged} is {'missing' if harm == 'missing' else 'damaged'}")


def test_a_stage_without_a_whole_checkpoint_begins_again(
    six_updates: tuple[Path, Trainer], bert: Path, task: SentenceData, tmp_path: Path
) -> None:
    folder, whole = six_updates
    shutil.copytree(folder, tmp_path / "run")
    for file in (tmp_path / "run").rglob("optimizer.pt"):
        file.unlink()
    resumed = run_trainer(bert, task, a_run(tmp_path / "run"), settings(batch_size=16, save_every=2, dropout=0.1))
    assert train(resumed).steps == 6
    same_weights(whole, resumed)


def test_a_stage_that_ended_is_not_trained_on(bert: Path, task: SentenceData, tmp_path: Path) -> None:
    """After an interruption in what follows it: one and a half epochs, and a search, end within an epoch."""
    for name, changes in {"training": {"epochs": 1.5}, "search": {"epochs": 3.0, "stop_after": 4}}.items():
        run = a_run(tmp_path, name=name, **changes)
        used = settings(batch_size=16, save_every=2)
        first, again = (run_trainer(bert, task, run, used, searching=name == "search") for _ in range(2))
        assert train(first) == train(again)
        assert first.model is not None and again.model is not None
        assert all(value.equal(again.model.state_dict()[key]) for key, value in first.model.state_dict().items())


def test_one_rank_uses_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the Trainer sees four, it would put four times the batch on them."""
    arguments = training.run_arguments(settings(batch_size=16), a_run(tmp_path))
    assert arguments.train_batch_size == 16
    monkeypatch.setattr(training, "TrainingArguments", lambda **given: SeesFour(**given))
    assert training.run_arguments(settings(batch_size=16), a_run(tmp_path)).train_batch_size == 16


class SeesFour(TrainingArguments):
    """On a machine with four GPUs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._n_gpu = 4


def test_mask_distances_of_the_search_are_written(bert: Path, task: SentenceData, tmp_path: Path) -> None:
    searched(bert, task, tmp_path, settings(batch_size=8, search_epochs=0.5))
    content = read_json(tmp_path / "search" / "mask_distance.json")
    assert content["steps"] == [1, 2, 3, 4, 5, 6]
    assert json.dumps(content["heads"]) == json.dumps(np.array(content["heads"]).T.tolist())
