"""What a run has trained so far: its newest checkpoint, opened with all that it belongs to."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from earlybert.core.progress import say
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.checkpoint.checkpoint import newest_intact
from earlybert.pretrain.checkpoint.compatibility import require_run_checkpoint
from earlybert.pretrain.checkpoint.state import RunState
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.model import PreTrainingNetwork, network_with
from earlybert.pretrain.network.state import Weights
from earlybert.pretrain.network.surgery import bake_coefficients
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
