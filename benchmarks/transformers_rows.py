"""The rows of benchmarks/transformers_support.py: each uses an export in one way, and returns what came out.

Shape suffixes: B sequences, S positions.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    pipeline,
)

import earlybert  # noqa: F401  (makes the narrow model known to the Auto classes)

WORDS = ["the", "old", "tree", "and", "a", "river", "saw", "no", "one", "here"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
POSITIONS = 32
FLASH = "flash_attention_2"
TEXT = "the old tree saw [MASK] river"


class NotHere(Exception):
    """A package or a device that is not there."""


@dataclass(frozen=True)
class Export:
    """A folder with a model; `kept` are the heads of each layer to look at, as numbers of this model's heads."""

    folder: Path
    kept: list[list[int]]


def load(auto: Any, export: Export, **options: Any) -> Any:
    """The model in evaluation; a head that its checkpoint lacks has the same weights in every export."""
    model, info = auto.from_pretrained(export.folder, output_loading_info=True, **options)
    generator = torch.Generator().manual_seed(1)
    for name in sorted(info["missing_keys"]):
        parameter = model.get_parameter(name)
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model.eval()


def batch() -> dict[str, Tensor]:
    """Three sequences of 12, 9 and 5 tokens, of two segments."""
    generator = torch.Generator().manual_seed(2)
    attention_mask_BS = (torch.arange(12)[None] < torch.tensor([[12], [9], [5]])).long()
    ids_BS = torch.randint(len(SPECIAL), len(SPECIAL + WORDS), (3, 12), generator=generator)
    types_BS = (torch.arange(12)[None] > 3).long() * attention_mask_BS
    return {"input_ids": ids_BS * attention_mask_BS, "attention_mask": attention_mask_BS, "token_type_ids": types_BS}


def first_gradient(model: nn.Module) -> Tensor:
    """Of the word embeddings, which everything else flows into."""
    gradient = next(p for name, p in model.named_parameters() if "word_embeddings" in name).grad
    assert gradient is not None
    return gradient


def trained_row(model: PreTrainedModel, **inputs: Tensor) -> list[Tensor]:
    """Loss and gradient."""
    loss = model(**inputs).loss
    loss.backward()
    return [loss, first_gradient(model)]


def auto_model(export: Export) -> list[Tensor]:
    output = load(AutoModel, export)(**batch())
    return [output.last_hidden_state, output.pooler_output]


def pre_training(export: Export) -> list[Tensor]:
    output = load(AutoModelForPreTraining, export)(**batch())
    return [output.prediction_logits, output.seq_relationship_logits]


def masked_tokens(export: Export) -> list[Tensor]:
    return [load(AutoModelForMaskedLM, export)(**batch()).logits]


def next_sentence(export: Export) -> list[Tensor]:
    return [load(AutoModelForNextSentencePrediction, export)(**batch()).logits]


def labels(export: Export) -> list[Tensor]:
    return trained_row(load(AutoModelForMaskedLM, export), **batch(), labels=batch()["input_ids"])


def sequence_classification(export: Export) -> list[Tensor]:
    model = load(AutoModelForSequenceClassification, export, num_labels=3)
    return trained_row(model, **batch(), labels=torch.tensor([2, 0, 1]))


def multiple_choice(export: Export) -> list[Tensor]:
    choices = {name: torch.stack((value_BS, value_BS.flip(0)), 1) for name, value_BS in batch().items()}
    return trained_row(load(AutoModelForMultipleChoice, export), **choices, labels=torch.tensor([1, 0, 1]))


def token_classification(export: Export) -> list[Tensor]:
    model = load(AutoModelForTokenClassification, export, num_labels=5)
    return trained_row(model, **batch(), labels=batch()["input_ids"] % 5)


def question_answering(export: Export) -> list[Tensor]:
    positions = {"start_positions": torch.tensor([1, 2, 0]), "end_positions": torch.tensor([4, 2, 0])}
    return trained_row(load(AutoModelForQuestionAnswering, export), **batch(), **positions)


def fill_mask(export: Export) -> list[Tensor]:
    answers = pipeline("fill-mask", str(export.folder), device="cpu")(TEXT, top_k=5)
    return [torch.tensor([[answer["token"], answer["score"]] for answer in answers])]


def long_text(export: Export) -> list[Tensor]:
    """A text longer than the positions is cut where the tokenizer is told to cut."""
    fill = pipeline("fill-mask", str(export.folder), device="cpu")
    answers = fill(f"{TEXT} {' '.join(WORDS * 10)}", top_k=5, tokenizer_kwargs={"truncation": True})
    return [torch.tensor([[answer["token"], answer["score"]] for answer in answers])]


def hidden_states(export: Export) -> list[Tensor]:
    return list(load(AutoModel, export)(**batch(), output_hidden_states=True).hidden_states)


def attentions(export: Export) -> list[Tensor]:
    """Of the kept heads; a cut one of the padded network attends to everything alike."""
    model = load(AutoModel, export, attn_implementation="eager")
    found = model(**batch(), output_attentions=True).attentions
    return [weights[:, heads] for weights, heads in zip(found, export.kept, strict=True)]


def inputs_embeds(export: Export) -> list[Tensor]:
    model, inputs = load(AutoModel, export), batch()
    embedded = model.get_input_embeddings()(inputs.pop("input_ids"))
    return [model(inputs_embeds=embedded, **inputs).last_hidden_state]


def position_ids(export: Export) -> list[Tensor]:
    return [load(AutoModel, export)(**batch(), position_ids=torch.arange(12).flip(0)[None]).last_hidden_state]


def with_attention(implementation: str) -> Callable[[Export], list[Tensor]]:
    def row(export: Export) -> list[Tensor]:
        flash = implementation == FLASH
        if flash and not torch.cuda.is_available():
            raise NotHere("not run: no GPU")
        if flash and importlib.util.find_spec("flash_attn") is None:
            raise NotHere("not run: no flash-attn")
        options = {"dtype": torch.bfloat16, "device_map": "cuda"} if flash else {}
        model = load(AutoModel, export, attn_implementation=implementation, **options)
        assert model.config._attn_implementation == implementation
        inputs = {name: value.to(model.device) for name, value in batch().items()}
        return [model(**inputs).last_hidden_state.float().cpu() * inputs["attention_mask"][..., None].cpu()]

    return row


def gradient_checkpointing(export: Export) -> list[Tensor]:
    model = load(AutoModelForMaskedLM, export).train()
    model.gradient_checkpointing_enable()
    return trained_row(model, **batch(), labels=batch()["input_ids"])


def resized(export: Export) -> list[Tensor]:
    model = load(AutoModelForMaskedLM, export)
    before = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(before + 7, mean_resizing=False)
    logits = model(**batch()).logits
    assert logits.shape[-1] == model.config.vocab_size == before + 7
    return [logits[..., :before]]


def trainer(export: Export) -> list[Tensor]:
    """Two steps of the Hugging Face Trainer; the scores afterwards."""
    model = load(AutoModelForSequenceClassification, export, num_labels=3)
    rows = [{name: value_BS[row] for name, value_BS in batch().items()} | {"labels": row} for row in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, max_steps=2, optim="sgd", learning_rate=0.01, report_to=[], use_cpu=True, disable_tqdm=True
        )
        training = Trainer(model, settings, train_dataset=rows)
        training.remove_callback(PrinterCallback)
        training.train()
    return [model.eval()(**batch()).logits]


def saved_again(export: Export) -> list[Tensor]:
    model = load(AutoModelForSequenceClassification, export, num_labels=3)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return [AutoModelForSequenceClassification.from_pretrained(folder).eval()(**batch()).logits]


def lora(export: Export) -> list[Tensor]:
    """peft with its own choice of matrices, two of every layer; the adapter learns."""
    if importlib.util.find_spec("peft") is None:
        raise NotHere("not run: no peft")
    from peft import LoraConfig, get_peft_model

    base = load(AutoModelForSequenceClassification, export, num_labels=3)
    before = base(**batch()).logits
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS"))
    adapters = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    assert len(adapters) == 2 * base.config.num_hidden_layers
    model(**batch(), labels=torch.tensor([2, 0, 1])).loss.backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in adapters)
    return [before, model(**batch()).logits]


def sentence_transformers(export: Export) -> list[Tensor]:
    if importlib.util.find_spec("sentence_transformers") is None:
        raise NotHere("not run: no sentence-transformers")
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(export.folder), device="cpu")
    return [torch.as_tensor(model.encode(["the old tree", "no one saw a river here"]))]


ALONE = """
import sys
sys.modules["earlybert"] = None
import torch
from transformers import AutoModelForMaskedLM
model = AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
with torch.no_grad():
    torch.save(model(**torch.load(sys.argv[2])).logits, sys.argv[2])
"""


def without_package(export: Export) -> list[Tensor]:
    """In a process that cannot import earlybert, with `trust_remote_code=True`."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "tensors.pt")
        torch.save(batch(), file)
        environment = os.environ | {"HF_MODULES_CACHE": folder}
        command = [sys.executable, "-c", ALONE, str(export.folder), file]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(done.stderr.splitlines()[-1])
        return [torch.load(file)]


def tokenizer_length(export: Export) -> list[Tensor]:
    """The tokenizer knows how many tokens the model takes."""
    ids = AutoTokenizer.from_pretrained(export.folder)(" ".join(WORDS * 10), truncation=True)["input_ids"]
    assert len(ids) == POSITIONS
    return [torch.tensor(ids)]


ROWS: dict[str, Callable[[Export], list[Tensor]]] = {
    "`AutoModel`": auto_model,
    "`AutoModelForPreTraining`": pre_training,
    "`AutoModelForMaskedLM`": masked_tokens,
    "`AutoModelForNextSentencePrediction`": next_sentence,
    "`AutoModelForSequenceClassification`": sequence_classification,
    "`AutoModelForTokenClassification`": token_classification,
    "`AutoModelForMultipleChoice`": multiple_choice,
    "`AutoModelForQuestionAnswering`": question_answering,
    '`pipeline("fill-mask")`': fill_mask,
    "a text that is too long, cut": long_text,
    "`model_max_length` of the tokenizer": tokenizer_length,
    "sentence-transformers": sentence_transformers,
    "`labels=`, loss and gradient": labels,
    "`output_hidden_states`": hidden_states,
    "`output_attentions`": attentions,
    "`inputs_embeds`": inputs_embeds,
    "`position_ids`": position_ids,
    "gradient checkpointing": gradient_checkpointing,
    '`attn_implementation="sdpa"`': with_attention("sdpa"),
    '`attn_implementation="eager"`': with_attention("eager"),
    f'`attn_implementation="{FLASH}"`': with_attention(FLASH),
    "`resize_token_embeddings`": resized,
    "`Trainer`": trainer,
    "`save_pretrained` and again": saved_again,
    "peft LoRA by default": lora,
    "without the package: `trust_remote_code=True`": without_package,
}
