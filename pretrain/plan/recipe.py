"""The recipe: every number of a run, typed; how it is read from YAML and overridden on the command line."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import yaml

from earlybert.core.arguments import alternatives, parse
from earlybert.core.errors import UserError, require
from earlybert.core.files import write_text
from earlybert.core.paths import did_you_mean, what_is_there
from earlybert.core.yaml_files import check_yaml
from earlybert.data_prep.config import MINIMUM_LENGTH, MINIMUM_VOCABULARY, CorpusConfig
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.plan.borders.border import Border
from earlybert.pretrain.plan.borders.coefficients import Coefficients
from earlybert.pretrain.plan.borders.lengthen import NewPositions
from earlybert.pretrain.plan.borders.narrow import Narrow
from earlybert.pretrain.plan.borders.stack import Stack
from earlybert.pretrain.plan.borders.widen import Widen
from earlybert.pretrain.plan.growth import with_growth
from earlybert.pretrain.plan.schedule import Form
from earlybert.pretrain.ticket.search import DrawConfig, SearchConfig

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_DEEPSPEED = Path(__file__).parent.parent.parent / "ds_configs" / "lamb.json"
DEFAULT_RECIPE = "quickstart"

# Sequences per forward pass of one rank; "auto" leaves that to the memory of the device.
MicroBatch = int | Literal["auto"]

# The fields of ModelConfig that a network with weights cannot have otherwise, and what the network calls them.
SHAPE = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "layer_norm_eps": "layer_norm_eps",
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the full network; of one that is named by `initial`, its own unless given.

    Args:
        hidden_size: width of the residual stream; num_heads must divide it.
        num_layers: encoder layers, of a network that grows those at the end.
        num_heads: attention heads per layer.
        intermediate_size: FFN neurons per layer.
        max_position_embeddings: longest sequence the position table holds.
        hidden_dropout: dropout on embeddings and sublayer outputs.
        attention_dropout: dropout on attention weights.
        type_vocab_size: kinds of segments, at least the two of a pair.
        layer_norm_eps: added to the variance in every LayerNorm.
        initializer_range: standard deviation of the initial weights.
    """

    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """What the DeepSpeed file leaves "auto".

    Args:
        betas: decay of the two moments.
        eps: added to the square root of the second moment.
        weight_decay: decoupled decay of weight matrices and embeddings; biases, LayerNorms and coefficients have none.
        max_grad_norm: global norm to which gradients are clipped.
        muon_learning_rate: peak in phase 1, or in phase 2 of a recipe without it, where the optimizer is Muon, of its
            matrices; the phases' learning_rate is that of the rest. The two keep this proportion, in phase 2 too.
        muon_weight_decay: decoupled decay of Muon's matrices.
        momentum: decay of Muon's momentum.
    """

    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-6
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    muon_learning_rate: float = 3e-3
    muon_weight_decay: float = 0.1
    momentum: float = 0.95

    def numbers(self, kind: str) -> dict[str, Any]:
        """What an optimizer of this type reads of them."""
        names = ["betas", "eps", "weight_decay", *(("muon_weight_decay", "momentum") if kind == "Muon" else ())]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """One phase of the schedule, as dense pre-training would run it.

    Args:
        length: tokens per sequence.
        max_predictions: most masked tokens per sequence; without it, as many as mask_probability asks for.
        global_batch: sequences per optimizer step over all ranks; any number not below the number of ranks.
        micro_batch: sequences per forward pass of one rank; "auto" takes as many as fit into the device's memory.
        steps: optimizer steps of the dense run.
        learning_rate: peak learning rate.
        warmup: share of the steps over which the learning rate rises.
    """

    length: int
    max_predictions: int | None = None
    global_batch: int
    micro_batch: MicroBatch
    steps: int
    learning_rate: float
    warmup: float


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Loss and accuracy on held-out text.

    Args:
        every: optimizer steps between validations; each stage also ends with one.
        samples: sequences at most, the first of the validation split, always masked the same way.
        mask_probability: share of their tokens to predict, whatever training has; so losses of all runs compare.
    """

    every: int = 100
    samples: int = 512
    mask_probability: float = 0.15


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A plan and all its numbers.

    Args:
        phase1: the first phase, short sequences; needed where the plan has a search or this phase.
        phase2: the second phase, long sequences; needed where the plan has it.
        plan: what runs, in order: search, narrow, phase1, phase2; stack and widen between two parts of phase 1, and
            coefficients before a search in the middle of it. With phases alone it is dense training.
        seed: everything random derives from it.
        precision: auto is fp16 on sm_70, bf16 on sm_80 and newer, fp32 on CPU.
        matmul_precision: torch's float32 matmul precision; auto is "medium" on CPUs where that still is true fp32.
        deterministic: only algorithms that give the same bits every time; slower on GPUs.
        compile: have torch.compile make one graph of the network's passes; auto does so on sm_80 and newer.
        max_skipped_updates: fp16 updates skipped in a row, for gradients that overflow, before the run stops.
        data: prepared corpus (`earlybert prepare`); without one the corpus section is prepared first.
        initial: begin with these weights in place of fresh ones: a BERT's name on the hub, its folder, an export or a
            run. The shape is its own, and the corpus must have its vocabulary (`prepare --tokenizer`).
        ticket: start from this ticket file instead of searching.
        deepspeed: DeepSpeed configuration file; default ds_configs/lamb.json.
        model: shape of the full network.
        corpus: the corpus to prepare when there is no data folder.
        optimizer: numbers of the optimizer; its type stands in the DeepSpeed file.
        search: how to search.
        draw: how much the ticket prunes, and by what.
        narrow: how the narrow network starts.
        stack: how the network grows in depth.
        widen: how a narrow network gets its cut units back.
        coefficients: when a search in the middle of phase 1 begins.
        grow: how phase 1 grows, a list of parts such as {until: 0.5, layers: 6, width: full} (`Growth`); it makes the
            plan's words and the numbers of stack, widen and coefficients.
        schedule: learning rate after warm-up, both degree 0.5: "poly" falls from the peak's sqrt(1 - x) (NVIDIA's
            PolyWarmUp, which jumps down at the end of warm-up), "poly_continuous" starts at the peak itself.
        new_positions: what the position table's rows beyond phase 1's length begin phase 2 with: their "initial"
            values, as in BERT, or the rows that phase 1 trained, "repeated".
        losses: parts of the loss that are trained, by name; without any those that the corpus has labels for.
        masking: dynamic masks differ every epoch, static ones stay.
        mask_probability: share of the tokens to predict; {from: 0.3, to: 0.15} is a straight line over the phases.
        whole_words: mask all pieces of a word together.
        packed_rows: global and micro-batches count rows of the corpus's packing (`prepare --packing true`), each with
            several short samples, so that all have about the same number of tokens.
        loader_workers: processes that prepare micro-batches ahead on every rank; with 0 a thread does.
        validation: how often, on how much.
        checkpoint_every: optimizer steps between checkpoints; each stage also ends with one.
        keep_checkpoints: newest checkpoints that are kept.
        log_every: optimizer steps between lines of metrics.jsonl.
        trackers: where curves, pictures and texts go beside metrics.jsonl; wandb and trackio are optional packages.
        export: forms written to the run directory at the end.
    """

    phase1: PhaseConfig | None = None
    phase2: PhaseConfig | None = None
    plan: list[str] = field(default_factory=lambda: ["search", "narrow", "phase1", "phase2"])
    seed: int = 42
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    matmul_precision: Literal["auto", "highest", "high", "medium"] = "auto"
    deterministic: bool = False
    compile: bool | Literal["auto"] = False
    max_skipped_updates: int = 20
    data: str | None = None
    initial: str | None = None
    ticket: str | None = None
    deepspeed: str | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    draw: DrawConfig = field(default_factory=DrawConfig)
    narrow: Narrow = field(default_factory=Narrow)
    stack: Stack = field(default_factory=Stack)
    widen: Widen = field(default_factory=Widen)
    coefficients: Coefficients = field(default_factory=Coefficients)
    grow: list[dict[str, Any]] = field(default_factory=list)
    schedule: Form = "poly"
    new_positions: NewPositions = "initial"
    losses: list[str] = field(default_factory=list)
    masking: Literal["dynamic", "static"] = "dynamic"
    mask_probability: float | dict[str, float] = 0.15
    whole_words: bool = False
    packed_rows: bool = False
    loader_workers: int = 0
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint_every: int = 200
    keep_checkpoints: int = 3
    log_every: int = 10
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = field(default_factory=lambda: ["tensorboard"])
    export: list[Literal["earlybert", "bert"]] = field(default_factory=lambda: ["earlybert"])

    def phase(self, name: str) -> PhaseConfig:
        """That of a stage's word or of a phase; raises UserError where the recipe does not have it."""
        name, phase = ("phase2", self.phase2) if name == "phase2" else ("phase1", self.phase1)
        if phase is None:
            raise UserError(f"{name} is missing, but plan is {self.plan}; the recipe must have a section {name}")
        return phase

    @property
    def first_phase(self) -> PhaseConfig:
        return self.phase1 or self.phase("phase2")

    @property
    def mask_shares(self) -> tuple[float, float]:
        """Share of the tokens to predict in the first and in the last step."""
        share = self.mask_probability
        return (share["from"], share["to"]) if isinstance(share, dict) else (share, share)

    @property
    def borders(self) -> dict[str, Border]:
        """What may happen between two stages, by its word in a plan: the sections that are borders."""
        sections = (getattr(self, section.name) for section in dataclasses.fields(self))
        return {section.word: section for section in sections if isinstance(section, Border)}

    @property
    def plan_borders(self) -> list[Border]:
        """Those that the plan has, each once, in its order."""
        return [self.borders[word] for word in dict.fromkeys(self.plan) if word in self.borders]

    def content(self) -> dict[str, Any]:
        """As in a file; a phase that it does not have is no section."""
        content = dataclasses.asdict(self)
        return {name: value for name, value in content.items() if name not in PHASE_SECTIONS or value is not None}

    def flat(self) -> dict[str, Any]:
        """All values by their dotted names, as on the command line."""
        return _flat(self)

    def save(self, path: Path) -> None:
        write_text(path, yaml.safe_dump(self.content(), sort_keys=False))


# Sections that a recipe may do without.
PHASE_SECTIONS = ("phase1", "phase2")


def recipe_path(name: str) -> Path:
    """File of a recipe given by name or by path."""
    shipped = RECIPES / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    if Path(name).is_file():
        return Path(name)
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    hint = did_you_mean(Path(name)) or alternatives(name, names)
    there = what_is_there(Path(name)).partition(";")[0]
    raise UserError(f"--config is {name!r}, which is no recipe, and as a path {there}{hint}")


def run_config_path(run_dir: Path) -> Path:
    """The resolved recipe of a run; raises UserError where there is none."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run_dir}: is not a run directory, which has config.yaml; {what_is_there(run_dir)}")
    return path


def recipe_parser(phases: Sequence[str] = PHASE_SECTIONS) -> jsonargparse.ArgumentParser:
    """Command-line parser with one dotted flag per field of a recipe that has these phases, all of whose numbers it
    needs."""
    parser = jsonargparse.ArgumentParser(prog="earlybert train", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--recipe_file", action="config", help=jsonargparse.SUPPRESS)
    for name in phases:
        parser.add_class_arguments(PhaseConfig, name)
    parser.add_class_arguments(Recipe, nested_key=None, skip=set(PHASE_SECTIONS))
    return parser


def load_recipe(
    file: Path,
    overrides: list[str],
    *,
    look_at: Callable[[str], NetworkConfig] | None = None,
    begun_with: str | None = None,
    beside: Sequence[str] = (),
) -> Recipe:
    """Reads a recipe file, applies `--dotted.field value` overrides, checks types; raises UserError.

    Args:
        file: The recipe.
        overrides: Flags and their values.
        look_at: Gives the network that `initial` names. What the recipe does not say of the shape is as there, and what
            it says otherwise is refused. Without it the recipe says everything, as a run's does.
        begun_with: What stands for `initial` where the recipe has none.
        beside: Options that are no fields of a recipe, and may have been meant by an unknown one.
    """
    sections = check_yaml(file, Recipe, "a recipe")
    flags = {re.split("[.=]", word.removeprefix("--"))[0] for word in overrides}
    phases = [name for name in PHASE_SECTIONS if name in sections | flags]
    arguments, defaults = [f"--recipe_file={file}", *overrides], {"initial": begun_with}
    recipe = _parsed(arguments, phases, defaults, beside)
    # As an unset variable of a shell is; a run that began with fresh weights instead would not be noticed.
    require(recipe.initial != "", "initial", "empty", "a model, or null for fresh weights")
    if recipe.initial and look_at:
        network = look_at(recipe.initial)
        shape = {f"model.{ours}": getattr(network, theirs) for ours, theirs in SHAPE.items()}
        size = max(network.vocab_size, MINIMUM_VOCABULARY)
        recipe = _parsed(arguments, phases, defaults | shape | {"corpus.vocab_size": size}, beside)
        _require_shape(recipe, network)
    if recipe.ticket:
        # A given ticket takes the place of the search.
        recipe = dataclasses.replace(recipe, plan=[name for name in recipe.plan if name != "search"])
    return _with_absolute_paths(_with_corpus_lengths(with_growth(recipe)))


def _parsed(arguments: list[str], phases: Sequence[str], defaults: dict[str, Any], beside: Sequence[str]) -> Recipe:
    parser = recipe_parser(phases)
    parser.set_defaults(defaults)
    parsed = parse(parser, arguments, beside)
    names = [field.name for field in dataclasses.fields(Recipe)]
    return Recipe(**{name: parsed[name] for name in names if name in parsed})


def _require_shape(recipe: Recipe, initial: NetworkConfig) -> None:
    for ours, theirs in SHAPE.items():
        if (asked := getattr(recipe.model, ours)) != (found := getattr(initial, theirs)):
            raise UserError(
                f"model.{ours} is {asked}, but {recipe.initial} (initial) has {found}; leave the model's shape out"
            )


def _with_corpus_lengths(recipe: Recipe) -> Recipe:
    """The corpus is prepared for exactly the lengths that the plan trains at."""
    lengths = sorted({recipe.phase(name).length for name in recipe.plan if name not in recipe.borders})
    if not lengths or lengths[0] < MINIMUM_LENGTH:
        return recipe  # check_recipe says what is wrong with the plan or the phase
    return dataclasses.replace(recipe, corpus=dataclasses.replace(recipe.corpus, lengths=lengths))


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    def absolute(path: str | None) -> str | None:
        return str(Path(path).resolve()) if path else None

    initial = recipe.initial if recipe.initial and not Path(recipe.initial).exists() else absolute(recipe.initial)
    return dataclasses.replace(
        recipe,
        data=absolute(recipe.data),
        initial=initial,  # may be a name on the hub
        ticket=absolute(recipe.ticket),
        deepspeed=absolute(recipe.deepspeed),
    )


def _flat(section: Any, prefix: str = "") -> dict[str, Any]:
    """A mapping is one value, and a phase that is not there has none."""
    flat: dict[str, Any] = {}
    for each in dataclasses.fields(section):
        name, value = prefix + each.name, getattr(section, each.name)
        if dataclasses.is_dataclass(value):
            flat |= _flat(value, f"{name}.")
        elif name not in PHASE_SECTIONS:
            flat[name] = value
    return flat
