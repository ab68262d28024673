"""DeepSpeed configuration files: every key checked, "auto" resolved, the optimizer section taken out."""

import copy
import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from earlybert.core.errors import UserError
from earlybert.core.files import read_json
from earlybert.pretrain.plan.recipe import MicroBatch, OptimizerConfig
from earlybert.pretrain.plan.stages import Stage

LAMB_SWITCHES = ("bias_correction", "nvlamb", "trust_ratio")
# What optimizer.params may hold beside "lr" and the numbers of the recipe, by the optimizer's type.
OPTIMIZERS = {
    "Lamb": (*LAMB_SWITCHES, "max_trust_ratio"),
    "Muon": (*LAMB_SWITCHES, "max_trust_ratio"),
    "AdamW": (),
}
# The last two are old names of the first two.
OFFLOADING = ("offload_optimizer", "offload_param", "cpu_offload", "cpu_offload_param")
FINDS_BAD_UPDATES = (("zero_optimization", "compute_grad_norm"), ("bf16", "check_grad_overflow"))
BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


@dataclass(frozen=True)
class DeepSpeedFile:
    """A checked file: DeepSpeed's own sections, and the optimizer's type and numbers (those that are not "auto")."""

    path: Path
    content: dict[str, Any]
    optimizer: str
    optimizer_numbers: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> "DeepSpeedFile":
        """Reads and checks a file; raises UserError."""
        content = read_json(path)
        if not isinstance(content, dict):
            raise UserError(f"{path}: holds a {type(content).__name__}; it must be a JSON object")
        _check_sections(content, path)
        section = content.pop("optimizer", {"type": "Lamb"})
        numbers = {name: value for name, value in section.get("params", {}).items() if value != "auto"}
        if "lr" in numbers:
            raise UserError(
                f'{path}: optimizer.params.lr is {numbers["lr"]}; it must be "auto": the recipe has the '
                "learning rate of each phase"
            )
        return cls(path, content, section["type"], numbers)

    @property
    def zero_stage(self) -> int:
        return self.content.get("zero_optimization", {}).get("stage", 0)

    def number(self, key: str) -> Any:
        """A top-level value, or None where it is absent or "auto"."""
        value = self.content.get(key, "auto")
        return None if value == "auto" else value

    def settled_micro_batch(self, global_batch: int, micro_batch: MicroBatch, world_size: int) -> int | None:
        """The file's, else the recipe's, else what the file's accumulation comes to; None where all leave it open."""
        named: int | None = self.number("train_micro_batch_size_per_gpu")
        if named is not None:
            return named
        if micro_batch != "auto":
            return micro_batch
        steps = self.number("gradient_accumulation_steps")
        return None if steps is None else -(-global_batch // (steps * world_size))

    def batches(self, global_batch: int, micro_batch: int, world_size: int) -> tuple[int, int]:
        """Micro-batch and accumulation steps that cover a global batch; the file's own numbers win where they agree.

        The global batch need not be divisible by anything: the last micro-batches may be short.
        """
        micro_batch = self.number("train_micro_batch_size_per_gpu") or min(micro_batch, -(-global_batch // world_size))
        accumulation = -(-global_batch // (micro_batch * world_size))
        train, steps = self.number("train_batch_size"), self.number("gradient_accumulation_steps")
        if train is not None and train != global_batch:
            raise UserError(
                f"{self.path}: train_batch_size is {train}, but the recipe's global_batch is {global_batch}; "
                'they must be equal, or train_batch_size "auto"'
            )
        if steps is not None and steps != accumulation:
            raise UserError(
                f"{self.path}: gradient_accumulation_steps is {steps}, but a global batch of {global_batch} in "
                f'micro-batches of {micro_batch} on {world_size} ranks takes {accumulation}; use "auto"'
            )
        return micro_batch, accumulation

    def resolve(
        self, optimizer: OptimizerConfig, precision: str, micro_batch: int, accumulation: int, world_size: int
    ) -> dict:
        """The dictionary for `deepspeed.initialize`, nothing "auto" left."""
        content = copy.deepcopy(self.content)
        content["train_micro_batch_size_per_gpu"] = micro_batch
        content["gradient_accumulation_steps"] = accumulation
        # DeepSpeed insists on this product; short micro-batches make up the difference to the recipe's global batch.
        content["train_batch_size"] = micro_batch * accumulation * world_size
        if content.get("gradient_clipping", "auto") == "auto":
            content["gradient_clipping"] = optimizer.max_grad_norm
        content["zero_allow_untested_optimizer"] = True
        content.setdefault("steps_per_print", 2**31)
        # By default DeepSpeed waits for the whole device twice in every micro-batch, to time its throughput.
        content.setdefault("timers", {}).setdefault("throughput", {}).setdefault("enabled", False)
        for name in ("fp16", "bf16"):
            section = content.setdefault(name, {})
            section["enabled"] = precision == name
        if precision in ("bf16", "fp16") and self.zero_stage > 0:
            # Hundreds of micro-batches, and the L1 gradient of 1e-4 beside a data gradient, do not survive a sum in
            # half precision. DeepSpeed has no such sum without ZeRO.
            content.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
        if precision == "bf16" and self.zero_stage == 1:
            # Once a step. Otherwise DeepSpeed rounds those sums to bf16 to add them up over the ranks.
            content.setdefault("communication_data_type", "fp32")
        return content

    def settled(self, optimizer: OptimizerConfig) -> OptimizerConfig:
        """The recipe's numbers with the file's in their places.

        Raises UserError where the recipe has one that is neither the default nor the file's.
        """
        numbers = {name: value for name, value in self.optimizer_numbers.items() if hasattr(optimizer, name)}
        if (clipping := self.number("gradient_clipping")) is not None:
            numbers["max_grad_norm"] = clipping
        default = OptimizerConfig()
        for name, value in numbers.items():
            given = getattr(optimizer, name)
            if given not in (value, getattr(default, name)):
                raise UserError(
                    f"optimizer.{name} is {given}, but {self.path} says {value}; make them agree, or write "
                    '"auto" into the file'
                )
        return dataclasses.replace(optimizer, **numbers)

    def precision(self) -> str | None:
        """The precision that the file itself asks for, or None when it leaves that to the recipe."""
        enabled = {name: self.content.get(name, {}).get("enabled", "auto") for name in ("fp16", "bf16")}
        if set(enabled.values()) == {False}:
            return "fp32"
        return next((name for name, value in enabled.items() if value is True), None)

    def settled_precision(self, wanted: str) -> str:
        """The file's, else the recipe's `wanted`, which may be "auto"; raises UserError where they do not agree."""
        stated = self.precision()
        if stated and wanted not in ("auto", stated):
            raise UserError(f"precision is {wanted}, but {self.path} asks for {stated}; they must agree")
        return stated or wanted

    def require_precision(self, precision: str) -> None:
        """Raises UserError for one that the file cannot train in."""
        if self.content.get(precision, {}).get("enabled") is False:
            raise UserError(
                f"{self.path}: {precision}.enabled is false, but precision comes to {precision}; give another one"
            )
        if precision == "fp16" and self.zero_stage == 0:
            # DeepSpeed's wrapper divides gradients by a loss scale that its engine never multiplied with.
            raise UserError(
                f"{self.path}: zero_optimization.stage is 0, which cannot train in fp16; it must be 1, 2 or 3"
            )

    def settled_compile(self, wanted: bool | Literal["auto"]) -> bool | Literal["auto"]:
        """The recipe's, where it works with the file's ZeRO stage; raises UserError."""
        # A graph has the parameters as they were when it was made; under ZeRO-3 they come and go.
        if wanted is True and self.zero_stage == 3:
            raise UserError(
                f"compile is on, but {self.path} asks for ZeRO stage 3; it must be off, or the stage 0, 1 or 2"
            )
        return False if self.zero_stage == 3 else wanted

    def require_batches(self, stages: Sequence[Stage], world_size: int) -> None:
        """Raises UserError where the file's numbers of a batch are not those of all stages, on so many ranks."""
        for stage in stages:
            micro_batch = self.settled_micro_batch(stage.global_batch, stage.micro_batch, world_size)
            self.batches(stage.global_batch, micro_batch or 1, world_size)

    def identity(self, optimizer: OptimizerConfig) -> dict[str, Any]:
        """What of the file decides the result of a step, and must not change within a run."""
        numbers = optimizer.numbers(self.optimizer)
        clipping = self.number("gradient_clipping")
        clipping = optimizer.max_grad_norm if clipping is None else clipping
        return {"type": self.optimizer, **numbers, **self.optimizer_numbers, "gradient_clipping": clipping}


def _known_sections() -> dict[str, set[str] | None]:
    """Top-level keys that have an effect here; for a section also the keys inside it."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    def fields(model: Any) -> set[str]:
        return {name for key, field in model.model_fields.items() for name in (key, field.alias) if name}

    plain = (
        "gradient_clipping",
        "steps_per_print",
        "wall_clock_breakdown",
        "zero_allow_untested_optimizer",
        "dump_state",
        "zero_force_ds_cpu_optimizer",
        "communication_data_type",
        "prescale_gradients",
        "gradient_predivide_factor",
    )
    return {
        **dict.fromkeys((*BATCH_KEYS, *plain)),
        "optimizer": {"type", "params"},
        "fp16": fields(DeepSpeedFP16Config),
        "bf16": fields(DeepSpeedBF16Config),
        "data_types": {"grad_accum_dtype"},
        "timers": {"throughput"},
        "zero_optimization": fields(DeepSpeedZeroConfig),
        "comms_logger": fields(CommsLoggerConfig),
        "flops_profiler": {
            "enabled",
            "recompute_fwd_factor",
            "profile_step",
            "module_depth",
            "top_modules",
            "detailed",
            "output_file",
        }
        & set(vars(DeepSpeedFlopsProfilerConfig({})))
        | {"enabled"},
    }


def _unknown(path: Path, key: str, known: set[str], prefix: str = "") -> UserError:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f'did you mean "{prefix}{close[0]}"?' if close else f"known keys are {', '.join(sorted(known))}"
    return UserError(f'{path}: unknown or unsupported key "{prefix}{key}"; {hint}')


def _check_sections(content: dict[str, Any], path: Path) -> None:
    known = _known_sections()
    if "scheduler" in content:
        raise UserError(f"{path}: has a scheduler section; remove it, the recipe has the learning-rate schedule")
    for key, value in content.items():
        if key not in known:
            raise _unknown(path, key, set(known))
        inside = known[key]
        if inside is None:
            continue
        if not isinstance(value, dict):
            raise UserError(f"{path}: {key} is {value!r}; it must be a JSON object")
        for name in value:
            if name not in inside:
                raise _unknown(path, name, inside, f"{key}.")
    _check_optimizer(content.get("optimizer", {"type": "Lamb"}), path)
    _check_number(path, "gradient_clipping", content.get("gradient_clipping", "auto"))
    stage = content.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise UserError(f"{path}: zero_optimization.stage is {stage!r}; it must be 0, 1, 2 or 3")
    for section, name in FINDS_BAD_UPDATES:
        if content.get(section, {}).get(name) is False:
            raise UserError(f"{path}: {section}.{name} is false; it must be true: a bad update is found by it")
    _check_values(content, path)
    for name in OFFLOADING:
        if name in content.get("zero_optimization", {}):
            raise UserError(f"{path}: zero_optimization.{name} is not supported: BERT fits a GPU; remove it")
    for section in ("fp16", "bf16"):
        if content.get(section, {}).get(f"{section}_master_weights_and_grads"):
            raise UserError(f"{path}: {section}.{section}_master_weights_and_grads is not supported: masters are fp32")
    _check_batches(content, path)


def _check_optimizer(section: dict[str, Any], path: Path) -> None:
    kind, parameters = section.get("type"), section.get("params", {})
    if not isinstance(kind, str) or kind not in OPTIMIZERS:
        raise UserError(f"{path}: optimizer.type is {kind!r}; it must be one of {', '.join(OPTIMIZERS)}")
    if not isinstance(parameters, dict):
        raise UserError(f"{path}: optimizer.params is {parameters!r}; it must be a JSON object")
    allowed = {"lr", *OptimizerConfig().numbers(kind), *OPTIMIZERS[kind]}
    for name, value in parameters.items():
        if name not in allowed:
            raise _unknown(path, name, allowed, "optimizer.params.")
        key = f"optimizer.params.{name}"
        if name in LAMB_SWITCHES:
            if not isinstance(value, bool) and value != "auto":
                raise UserError(f'{path}: {key} is {value!r}; it must be true, false or "auto"')
        elif name == "max_trust_ratio":
            if value not in (None, "auto") and not (_is_number(value) and value > 0):
                raise UserError(f'{path}: {key} is {value!r}; it must be a number above 0, null or "auto"')
        elif name == "eps":
            if value != "auto" and not (_is_number(value) and value > 0):
                raise UserError(f'{path}: {key} is {value!r}; it must be a number above 0, or "auto"')
        elif name == "momentum":
            if value != "auto" and not _is_decay_rate(value):
                raise UserError(f'{path}: {key} is {value!r}; it must be a number, at least 0 and below 1, or "auto"')
        elif name == "betas":
            pair = isinstance(value, list) and len(value) == 2 and all(map(_is_decay_rate, value))
            if value != "auto" and not pair:
                raise UserError(
                    f'{path}: {key} is {value!r}; it must be two numbers, each at least 0 and below 1, or "auto"'
                )
        else:
            _check_number(path, key, value)


def _is_number(value: Any) -> bool:
    """Whether it is a finite number, at least 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _is_decay_rate(value: Any) -> bool:
    return _is_number(value) and value < 1


def _check_number(path: Path, name: str, value: Any) -> None:
    """Refuses what is neither "auto" nor a number from 0 on."""
    if value != "auto" and not _is_number(value):
        raise UserError(f'{path}: {name} is {value!r}; it must be a number, at least 0, or "auto"')


def _check_values(content: dict[str, Any], path: Path) -> None:
    """Lets DeepSpeed's own models judge the values in its sections."""
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig
    from pydantic import ValidationError

    throughput = content.get("timers", {}).get("throughput", {})
    if not isinstance(throughput, dict):
        raise UserError(f"{path}: timers.throughput is {throughput!r}; it must be a JSON object")
    models = {"zero_optimization": DeepSpeedZeroConfig, "fp16": DeepSpeedFP16Config, "bf16": DeepSpeedBF16Config}
    sections = {name: (model, content.get(name, {})) for name, model in models.items()}
    sections["timers.throughput"] = (DeepSpeedThroughputTimerConfig, throughput)
    for section, (model, given) in sections.items():
        values = dict(given)
        if section in ("fp16", "bf16") and values.pop("enabled", "auto") not in (True, False, "auto"):
            enabled = content[section]["enabled"]
            raise UserError(f'{path}: {section}.enabled is {enabled!r}; it must be true, false or "auto"')
        try:
            model(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, (section, *first["loc"])))
            raise UserError(f"{path}: {name} is {first['input']!r}; {first['msg']}") from None
    if all(content.get(name, {}).get("enabled") is True for name in ("fp16", "bf16")):
        raise UserError(f'{path}: fp16.enabled and bf16.enabled are both true; at most one may be, or both "auto"')


def _check_batches(content: dict[str, Any], path: Path) -> None:
    numbers = {key: content[key] for key in BATCH_KEYS if content.get(key, "auto") != "auto"}
    for key, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f'{path}: {key} is {value!r}; it must be a positive integer or "auto"')
    if len(numbers) == len(BATCH_KEYS):
        train, micro, accumulation = (numbers[key] for key in BATCH_KEYS)
        if train % (micro * accumulation):
            raise UserError(
                f"{path}: train_batch_size {train} is not train_micro_batch_size_per_gpu {micro} times "
                f"gradient_accumulation_steps {accumulation} times any number of ranks; "
                'make them agree or leave two of them "auto"'
            )
