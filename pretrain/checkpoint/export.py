"""Export of a run's network, narrow as it is or zero-padded into a plain BERT."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from earlybert.core.errors import UserError
from earlybert.core.progress import say
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.checkpoint.card import Form, run_card
from earlybert.pretrain.checkpoint.checkpoint import newest_intact
from earlybert.pretrain.checkpoint.compatibility import require_run_checkpoint
from earlybert.pretrain.checkpoint.model_folder import write_model_folder
from earlybert.pretrain.checkpoint.state import RunState
from earlybert.pretrain.network.bert_format import parts_without_bert_head, to_bert, to_earlybert
from earlybert.pretrain.network.config import NetworkConfig, dense_config
from earlybert.pretrain.network.model import PreTrainingNetwork, network_with
from earlybert.pretrain.network.state import Weights
from earlybert.pretrain.network.surgery import bake_coefficients, widen_weights
from earlybert.pretrain.plan.corpora import run_corpus
from earlybert.pretrain.plan.plan import Plan, corpus_plan
from earlybert.pretrain.plan.recipe import Recipe, load_recipe, run_config_path
from earlybert.pretrain.plan.stages import Stage


@dataclass(frozen=True)
class Trained:
    """What a run's newest checkpoint holds; coefficients of an unfinished search are multiplied into the weights."""

    recipe: Recipe
    corpus: Corpus
    plan: Plan
    state: RunState
    stage: Stage
    config: NetworkConfig
    weights: Weights

    def network(self) -> PreTrainingNetwork:
        """The network as narrow as it is."""
        return network_with(self.config, self.weights)


def newest(run_dir: Path) -> Trained | None:
    """The newest intact checkpoint of a run; None where there is none yet."""
    recipe = load_recipe(run_config_path(run_dir), [])
    checkpoint = newest_intact(run_dir / "checkpoints", say)
    if checkpoint is None:
        return None
    corpus = run_corpus(run_dir, recipe)
    plan = require_run_checkpoint(checkpoint, run_dir, corpus_plan(recipe, corpus), corpus)
    planned = plan.stages[checkpoint.state.stage_index]
    weights, _ = bake_coefficients(checkpoint.weights, {})
    config = dataclasses.replace(planned.network, searching=False)
    return Trained(recipe, corpus, plan, checkpoint.state, planned.stage, config, weights)


def export_checkpoint(run_dir: Path, form: Form, out: Path) -> None:
    """Writes the newest checkpoint's network, tokenizer and model card to `out`.

    "earlybert" is the narrow network with the code that loads it, "bert" the full shape with zeros where a unit was
    cut: Hugging Face's BERT. Both have the heads of this network's loss, as far as BERT has such.
    """
    trained = newest(run_dir)
    if trained is None:
        raise UserError(f"{run_dir / 'checkpoints'}: holds no intact checkpoint to export")
    for part in parts_without_bert_head(trained.config):
        say(f"the {form} export leaves out the head for {part.title}: Hugging Face's BERT has none")
    if form == "bert":
        full, weights, kept = dense_config(trained.config), trained.weights, trained.config.kept_units
        model: PreTrainedModel = to_bert(full, widen_weights(full, weights, kept) if kept else weights)
    else:
        model = to_earlybert(trained.config, trained.weights)
    card = run_card(trained, form, type(model).__name__, run_dir)
    write_model_folder(model, trained.corpus.tokenizer, card, out)
