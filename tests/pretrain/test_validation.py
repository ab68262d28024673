"""Validation against Hugging Face's BERT, which has no dropout when it is loaded: on all samples, exactly."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import BertForPreTraining

from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.checkpoint.trained import newest
from earlybert.pretrain.plan.corpora import corpus_directory
from earlybert.pretrain.train.batches import stage_loader
from tests.pretrain.run_files import metrics
from tests.pretrain.small_models import padded_labels


@torch.no_grad()
def test_the_last_validation_is_the_exported_networks_loss(finished_run: Path) -> None:
    """The run trains with dropout, in any number of micro-batches."""
    trained = newest(finished_run)
    assert trained is not None and trained.config.hidden_dropout_prob == trained.config.attention_probs_dropout_prob > 0
    bert = BertForPreTraining.from_pretrained(finished_run / "export" / "bert").double()
    sums = dict.fromkeys(("masked_loss", "masked_accuracy", "next_sentence_loss", "next_sentence_accuracy"), 0.0)
    predictions = sequences = 0
    corpus = Corpus.open(corpus_directory(trained.recipe))
    loader = stage_loader(corpus, "validation", trained.stage, trained.recipe, micro_batch=9)
    for batch in loader.load(0).batches:
        output = bert(**batch.padded(trained.corpus.special_tokens.pad))
        labels_BS = padded_labels(batch)["labels"]
        scores = {
            "masked": (output.prediction_logits[labels_BS != -100], labels_BS[labels_BS != -100]),
            "next_sentence": (output.seq_relationship_logits, batch.segment_labels_B),
        }
        for name, (logits, labels) in scores.items():
            sums[f"{name}_loss"] += float(F.cross_entropy(logits, labels, reduction="sum"))
            sums[f"{name}_accuracy"] += float((logits.argmax(-1) == labels).sum())
        predictions, sequences = predictions + len(batch.masked_labels_N), sequences + len(batch.segment_labels_B)
    found = metrics(finished_run, "validation")[-1]
    assert sequences == 40  # the recipe's number of samples
    for name, total in sums.items():
        count = predictions if name.startswith("masked") else sequences
        assert found[name] == pytest.approx(total / count, rel=1e-5), name
    assert found["loss"] == pytest.approx(found["masked_loss"] + found["next_sentence_loss"])
