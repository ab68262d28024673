"""The model card of an export: what it is, what it learnt from, how, how well, and how to load it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from earlybert.core.text import markdown_table
from earlybert.pretrain.checkpoint.metrics import of_kind, read_metrics, score_names
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.losses.registry import loss_parts
from earlybert.pretrain.network.work import count_parameters
from earlybert.pretrain.plan.text import plan_markdown, published_initial

if TYPE_CHECKING:
    from earlybert.data_prep.samples.corpus import Corpus
    from earlybert.pretrain.checkpoint.trained import Trained

Form = Literal["earlybert", "bert"]
PAPER = "https://aclanthology.org/2021.acl-long.171/"


def run_card(trained: "Trained", form: Form, class_name: str, run_dir: Path) -> str:
    """Of what a run has trained so far; `class_name` is what transformers calls the exported model."""
    sections = {
        "Load it": how_to_load(form, class_name),
        "Data": _data(trained.corpus),
        "Training": _training(trained),
        "Losses on held-out text": _losses(trained, run_dir),
    }
    name, body = run_dir.resolve().name, "".join(f"## {title}\n\n{text}\n" for title, text in sections.items())
    task = "fill-mask" if "masked" in trained.config.losses else None
    top = header(task, published_initial(trained.recipe))
    return f"{top}# {name}\n\n{shape(trained.config, form)}\n{body}"


def header(task: str | None, base_model: str | None = None) -> str:
    """What the hub reads; with the model of the hub that it began with. The license is the user's to choose."""
    lines = [
        "library_name: transformers",
        *([f"pipeline_tag: {task}"] if task else []),
        *([f"base_model: {base_model}"] if base_model else []),
        "tags:",
        "- bert",
        "- earlybert",
    ]
    return "".join(
        f"{line}\n" for line in ("---", "# Add `license: NAME` here before you publish this model.", *lines, "---")
    )


def shape(config: NetworkConfig, form: Form) -> str:
    """What the network is, in a paragraph."""
    text = (
        f"A BERT of {config.num_hidden_layers} layers and width {config.hidden_size}, trained with EarlyBERT "
        f"([Chen et al. 2021]({PAPER})). It has {count_parameters(config):,} parameters. "
        f"A text may have up to {config.max_position_embeddings} tokens.\n"
    )
    if config.kept_units is None:
        return text
    heads, neurons = (" ".join(map(str, units)) for units in (config.heads, config.neurons))
    text += (
        f"\nThe network is narrow. From the first layer to the last it has {heads} of {config.num_attention_heads} "
        f"attention heads and {neurons} of {config.intermediate_size} feed-forward neurons. "
        f"They were chosen by the ticket `{config.ticket_sha256}`.\n"
    )
    if form == "bert":
        text += "This folder has zeros in the place of the others, so plain BERT gives the same scores.\n"
    return text


def how_to_load(form: Form, class_name: str) -> str:
    """Python code, and what it needs."""
    bare = class_name.removeprefix("Early")
    if form == "bert":
        return f'```python\nfrom transformers import {bare}\n\nmodel = {bare}.from_pretrained("THIS FOLDER")\n```\n'
    auto = bare.replace("BertFor", "AutoModelFor").replace("BertModel", "AutoModel")
    return (
        f"```python\nfrom transformers import {auto}\n\n"
        f'model = {auto}.from_pretrained("THIS FOLDER", trust_remote_code=True)\n```\n\n'
        "The code is in `modeling_earlybert.py`. It needs torch and transformers, 4.57 or newer. Where the package\n"
        "`earlybert` is installed, write `import earlybert` and leave `trust_remote_code=True` out.\n"
    )


def _data(corpus: "Corpus") -> str:
    manifest: dict[str, Any] = corpus.manifest
    config, counts = manifest["config"], manifest["counts"]
    sources = ", ".join(counts["train"]["sources"])
    rows = [(name, *(f"{split[name]:,}" for split in counts.values())) for name in ("documents", "sentences", "tokens")]
    case = "lower case" if config["lowercase"] else "upper and lower case"
    given = "given" if config.get("tokenizer") else config["tokenizer_kind"]
    return (
        f"Sources: {sources}. The vocabulary ({given}) has {corpus.vocab_size:,} tokens.\n"
        f"The samples are made for the objective `{corpus.objective}`, of text in {case}.\n\n"
        f"{markdown_table(('', *counts), rows)}"
    )


def _training(trained: "Trained") -> str:
    state, stages = trained.state, trained.plan.stages
    where = f"stage {state.stage}, step {state.step:,} of {trained.stage.steps:,}"
    last = state.finished and state.stage_index == len(stages) - 1
    end = "The training is finished." if last else f"**The training is not finished**: this is {where}."
    numbers = f"The optimizer is {state.optimizer['type']}, the seed {trained.recipe.seed}."
    return f"{end} {numbers}\n\n{plan_markdown(trained.plan)}"


def _losses(trained: "Trained", run_dir: Path) -> str:
    """Those of the last validation before the checkpoint."""
    parts = loss_parts(trained.config.losses)
    validations = of_kind(read_metrics(run_dir, {"validation": score_names(parts)}), "validation")
    made = [line for line in validations if line["global_step"] <= trained.state.global_step]
    if not made:
        return "No validation has been made yet.\n"
    line = made[-1]
    unigram = trained.corpus.manifest["unigram_cross_entropy"]
    rows = [
        (
            part.title,
            f"{line[f'{part.name}_loss']:.3f}",
            f"{part.guessing_by_frequency(trained.config, unigram):.3f}",
            f"{line[f'{part.name}_accuracy']:.3f}",
        )
        for part in parts
    ]
    header = ("", "loss, nats", "loss of guessing by frequency", "accuracy")
    return f"After {line['global_step']:,} steps. Nothing else was tested.\n\n{markdown_table(header, rows)}"
