"""Export of a run's network, narrow as it is or zero-padded into a plain BERT."""

from pathlib import Path

from transformers import PreTrainedModel

from earlybert.core.errors import UserError
from earlybert.core.progress import say
from earlybert.pretrain.checkpoint.card import Form, run_card
from earlybert.pretrain.checkpoint.model_folder import write_model_folder
from earlybert.pretrain.checkpoint.trained import newest
from earlybert.pretrain.network.bert_format import parts_without_bert_head, to_bert, to_earlybert
from earlybert.pretrain.network.config import dense_config
from earlybert.pretrain.network.surgery import widen_weights


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
