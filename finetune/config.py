"""Every number of fine-tuning, with the paper's defaults."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from earlybert.core.errors import UserError
from earlybert.finetune.text import SPECIAL_TOKENS
from earlybert.pretrain.ticket.search import RankingName
from earlybert.pretrain.ticket.ticket import TicketRule

Method = Literal["dense", "shortened", "earlybert", "random", "all", "layerdrop"]
# The settings of which several values may be given, described.
LEARNING_RATES = {
    "learning_rate": "Peak learning rate of dense training, LayerDrop and the search; 2e-5, SQuAD 3e-5. Of several, "
    "each method takes the one that scores best on a held-out tenth of the training set when trained on the rest.",
    "ticket_learning_rate": "Peak learning rate with a ticket; 4e-5, SQuAD 3e-5. As many as learning_rate has: the "
    "search has the one, what follows the other. Where that has several, they are in the proportion of the defaults.",
}
METHODS: tuple[Method, ...] = ("dense", "shortened", "earlybert", "random", "all", "layerdrop")


@dataclass(frozen=True, kw_only=True)
class TaskDefaults:
    """The settings that differ from task to task, as the paper has them (sections 3.3, 4.1 and 4.2)."""

    epochs: float
    learning_rate: float
    ticket_epochs: float
    ticket_learning_rate: float
    batch_size: int
    max_length: int


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to fine-tune.

    Args:
        epochs: Passes over the data of dense training and of LayerDrop; 3, SQuAD 2.
        learning_rate: See LEARNING_RATES.
        ticket_epochs: Passes over the data with a ticket; 2.
        ticket_learning_rate: See LEARNING_RATES.
        search_epochs: Part of dense training's passes, on its learning-rate curve, after which the ticket is drawn.
        search_objective: Search on the task's own loss, or on masked tokens of its texts (the paper's Appendix B).
        ranking: What the search ranks heads and neurons by: the magnitude of their coefficients, their first-order
            importance to the loss, or the norm of their weights.
        lambda_heads: Weight of the L1 term on head coefficients.
        lambda_neurons: Weight of the L1 term on neuron coefficients.
        draw: How much the ticket prunes.
        ticket: Train this ticket file instead of searching for one.
        train: File of one's own to train on, for text-classification and token-classification: .csv or .tsv with
            column names in its first line, .jsonl, or .json with a list of objects.
        validation: The same to score on.
        text: Column of the text; "text".
        text_pair: Column of a second text, where there is one.
        label: Column of the label, text or an integer; "label".
        tokens: Column with a list of words; "tokens".
        tags: Column with a list of their tags; "tags".
        batch_size: Sequences per update over all ranks; 32, SQuAD 48.
        micro_batch: Sequences per forward pass of one rank; all of its share by default.
        max_length: Most tokens per sequence; 128, SQuAD 384.
        doc_stride: SQuAD: tokens from one window over the context to the next.
        max_query_length: SQuAD: tokens of the question that are kept.
        n_best: SQuAD: start and end positions that are combined.
        max_answer_length: SQuAD: most tokens in an answer.
        warmup: Share of the updates over which the learning rate rises; then it falls linearly to 0.
        weight_decay: Decoupled decay, none on biases and LayerNorms.
        max_grad_norm: Global norm to which gradients are clipped.
        adam_eps: Added to the square root of Adam's second moment.
        dropout: On embeddings, sublayer outputs, attention weights and before the classifier.
        max_train_examples: Take only the first so many.
        max_eval_examples: Score only the first so many.
        precision: auto is fp16 on sm_70, bf16 on sm_80 and newer, fp32 on CPU; weights and coefficients stay fp32.
        save_every: Updates between the checkpoints that an interrupted call goes on from.
        predict: Write predictions: GLUE's test set for submission, SQuAD's development set, one's own validation file.
        export: Forms in which the trained network is written: earlybert (narrow as it is) and bert (plain BERT).
    """

    epochs: float | None = None
    learning_rate: float | list[float] | None = None
    ticket_epochs: float | None = None
    ticket_learning_rate: float | list[float] | None = None
    search_epochs: float = 0.2
    search_objective: Literal["task", "mlm"] = "task"
    ranking: RankingName = "coefficient"
    lambda_heads: float = 1e-4
    lambda_neurons: float = 1e-4
    draw: TicketRule = field(default_factory=lambda: TicketRule(neuron_ratio=0.4))
    ticket: str | None = None
    train: str | None = None
    validation: str | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    tokens: str | None = None
    tags: str | None = None
    batch_size: int | None = None
    micro_batch: int | None = None
    max_length: int | None = None
    doc_stride: int = 128
    max_query_length: int = 64
    n_best: int = 20
    max_answer_length: int = 30
    warmup: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    adam_eps: float = 1e-8
    dropout: float = 0.1
    max_train_examples: int | None = None
    max_eval_examples: int | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    save_every: int = 500
    predict: bool = False
    export: list[Literal["earlybert", "bert"]] = field(default_factory=lambda: ["earlybert"])

    def check(self) -> None:
        """Raises UserError for a value that cannot work."""
        positive = (
            "epochs",
            "learning_rate",
            "ticket_epochs",
            "ticket_learning_rate",
            "search_epochs",
            "batch_size",
            "micro_batch",
            "doc_stride",
            "max_query_length",
            "n_best",
            "max_answer_length",
            "max_grad_norm",
            "max_train_examples",
            "max_eval_examples",
            "save_every",
        )
        for name in positive:
            for value in _values(getattr(self, name)):
                if value is not None and not value > 0:
                    raise UserError(f"{name} is {value}; it must be above 0")
        for name in ("lambda_heads", "lambda_neurons", "weight_decay", "adam_eps"):
            if not (value := getattr(self, name)) >= 0:
                raise UserError(f"{name} is {value}; it must not be negative")
        for name in ("warmup", "dropout"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise UserError(f"{name} is {value}; it must be at least 0 and below 1")

    def tries(self, defaults: TaskDefaults) -> list["TaskSettings"]:
        """All numbers for one task, once for each learning rate; raises UserError where they do not go together."""
        full, ticket = _values(self.learning_rate), _values(self.ticket_learning_rate)
        if len(full) > 1 and self.ticket_learning_rate is None:
            ticket = [rate * defaults.ticket_learning_rate / defaults.learning_rate for rate in full]
        if len(full) != len(ticket):
            raise UserError(
                f"learning_rate has {len(full)} value(s) and ticket_learning_rate {len(ticket)}; "
                "they are tried in pairs, so it must be as many"
            )
        pairs = (dict(zip(LEARNING_RATES, pair, strict=True)) for pair in zip(full, ticket, strict=True))
        return [dataclasses.replace(self, **pair).for_task(defaults) for pair in pairs]

    def for_task(self, defaults: TaskDefaults) -> "TaskSettings":
        """Those for one learning rate."""
        chosen = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        for name, default in dataclasses.asdict(defaults).items():
            if chosen[name] is None:
                chosen[name] = default
        settings = TaskSettings(**chosen)
        if settings.search_epochs > settings.epochs:
            raise UserError(
                f"search_epochs is {settings.search_epochs:g}, but the search follows dense training's "
                f"{settings.epochs:g} epochs; it must not be longer"
            )
        shortest = SPECIAL_TOKENS[2] + 2
        if settings.max_length < shortest:
            raise UserError(f"max_length is {settings.max_length}; it must be at least {shortest}")
        return settings


@dataclass(frozen=True, kw_only=True)
class TaskSettings(Settings):
    """The settings for one task, nothing left open."""

    epochs: float
    learning_rate: float
    ticket_epochs: float
    ticket_learning_rate: float
    batch_size: int
    max_length: int


def _values(value: Any) -> list[Any]:
    """Of a setting that may have several."""
    return value if isinstance(value, list) else [value]
