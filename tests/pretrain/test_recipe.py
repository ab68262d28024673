"""Recipes: the shipped ones, reading and overriding, and one clear sentence for everything that cannot be right."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from earlybert.core.errors import UserError
from earlybert.pretrain.plan.checks import check_recipe
from earlybert.pretrain.plan.recipe import RECIPES, load_recipe, recipe_path
from earlybert.pretrain.plan.same_run import require_same_run
from earlybert.pretrain.plan.stages import build_stages
from tests.pretrain.conftest import SMALL

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def refusal(action: Callable[[], object]) -> str:
    """The one line with which bad input is refused."""
    with pytest.raises(UserError) as caught:
        action()
    text = str(caught.value)
    assert text and "\n" not in text and "<class" not in text and "Traceback" not in text
    return text


def refused_option(file: Path, *options: str) -> str:
    return refusal(lambda: check_recipe(load_recipe(file, list(options))))


def refused_text(file: Path, text: str | bytes) -> str:
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return refused_option(file)


# --- what is right ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_sound(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_path(name), [])
    check_recipe(recipe, world_size=2)
    recipe.save(tmp_path / "config.yaml")
    assert load_recipe(tmp_path / "config.yaml", []) == recipe


def test_quickstart_is_shipped() -> None:
    assert "quickstart" in SHIPPED


@pytest.mark.parametrize(
    ("name", "layers", "heads", "neurons", "pruned_heads"),
    [("bert_base", 12, 12, 3072, 4), ("bert_large", 24, 16, 4096, 6)],
)
def test_full_size_recipes_have_the_papers_numbers(
    name: str, layers: int, heads: int, neurons: int, pruned_heads: int
) -> None:
    recipe = load_recipe(recipe_path(name), [])
    assert [stage.steps for stage in build_stages(recipe)] == [400, 5_630, 1_250]
    phase1, phase2 = recipe.phase("phase1"), recipe.phase("phase2")
    assert (phase1.steps, phase1.global_batch, phase1.length, phase1.max_predictions) == (7_038, 65_536, 128, 20)
    assert (phase2.steps, phase2.global_batch, phase2.length, phase2.max_predictions) == (1_563, 32_768, 512, 80)
    assert (phase1.learning_rate, phase1.warmup) == (6e-3, 0.2843)
    assert (phase2.learning_rate, phase2.warmup) == (4e-3, 0.128)
    assert recipe.search.lambda_heads == recipe.search.lambda_neurons == 1e-4
    assert (recipe.model.num_layers, recipe.model.num_heads, recipe.model.intermediate_size) == (layers, heads, neurons)
    assert recipe.draw.head_ratio * heads == pytest.approx(pruned_heads)
    assert (recipe.draw.head_scope, recipe.draw.neuron_scope, recipe.draw.neuron_ratio) == ("layer", "global", 0.3)
    optimizer = recipe.optimizer
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ([0.9, 0.999], 1e-6, 0.01)
    assert (optimizer.max_grad_norm, recipe.schedule) == (1.0, "poly")


def test_numbers_are_read_from_the_file(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, [])
    # YAML 1.1 takes 1e-2 for a text.
    assert recipe.phase("phase1").learning_rate == 0.01
    assert (recipe.model.num_layers, recipe.phase("phase2").steps, recipe.search.steps) == (2, 6, 5)
    assert recipe.plan == ["search", "narrow", "phase1", "phase2"]
    assert recipe.corpus.lengths == [16, 32]


def test_options_override_the_file(recipe_file: Path) -> None:
    options = ["--phase1.steps", "12", "--model.num_layers=3", "--plan", "[phase1]", "--data", "somewhere"]
    recipe = load_recipe(recipe_file, options)
    assert (recipe.phase("phase1").steps, recipe.model.num_layers, recipe.plan) == (12, 3, ["phase1"])
    assert recipe.corpus.lengths == [16]
    assert recipe.data is not None and Path(recipe.data) == Path("somewhere").resolve()
    assert recipe.phase("phase1").length == 16


def test_saved_recipe_is_the_same_recipe(recipe_file: Path, tmp_path: Path) -> None:
    options = [
        "--draw.head_ratio",
        "0.3333333333333333",
        "--optimizer.eps",
        "1e-7",
        "--ticket",
        str(tmp_path / "t.json"),
    ]
    recipe = load_recipe(recipe_file, options)
    recipe.save(tmp_path / "config.yaml")
    assert load_recipe(tmp_path / "config.yaml", []) == recipe
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["draw"]["head_ratio"] == 0.3333333333333333


def test_given_ticket_takes_the_place_of_the_search(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, ["--ticket", str(tmp_path / "ticket.json")])
    check_recipe(recipe)
    assert recipe.plan == ["narrow", "phase1", "phase2"]


def test_recipes_are_found_by_name_and_by_path(recipe_file: Path) -> None:
    assert recipe_path("quickstart") == RECIPES / "quickstart.yaml"
    assert recipe_path(str(recipe_file)) == recipe_file
    message = refusal(lambda: recipe_path("quickstartt"))
    assert "'quickstartt'" in message and "quickstart" in message


@pytest.mark.parametrize(
    "plan", ["[search]", "[phase1]", "[phase2]", "[phase1,phase2]", "[search,narrow,phase1]", "[search,narrow,phase2]"]
)
def test_parts_of_the_plan_are_plans(recipe_file: Path, plan: str) -> None:
    check_recipe(load_recipe(recipe_file, ["--plan", plan]))


def test_sections_that_the_plan_does_not_use_are_not_judged(recipe_file: Path) -> None:
    """A short dense run need not know how to switch off a search."""
    dense = ["--plan", "[phase1]", "--search.steps", "400", "--draw.width_multiple", "7", "--phase2.length", "512"]
    check_recipe(load_recipe(recipe_file, dense))


PHASE2 = SMALL.splitlines(keepends=True)[-1]
PHASE1 = "".join(SMALL.splitlines(keepends=True)[3:-1])
NETWORK = SMALL.splitlines(keepends=True)[0]


@pytest.mark.parametrize(
    ("plan", "phase"),
    [("[phase1]", PHASE1), ("[search]", PHASE1), ("[search, narrow, phase1]", PHASE1), ("[phase2]", PHASE2)],
)
def test_a_recipe_needs_only_the_phases_of_its_plan(tmp_path: Path, plan: str, phase: str) -> None:
    """And no search section; what it does not have is not in config.yaml either, and that file is read again."""
    file, saved = tmp_path / "one.yaml", tmp_path / "config.yaml"
    file.write_text(f"plan: {plan}\n{NETWORK}{phase}draw: {{width_multiple: 8}}\n")
    recipe = load_recipe(file, ["--search.steps", "4"] if "search" in plan else [])
    check_recipe(recipe)
    recipe.save(saved)
    absent = "phase2" if phase == PHASE1 else "phase1"
    assert absent not in yaml.safe_load(saved.read_text())
    assert load_recipe(saved, []) == recipe
    assert all(not name.startswith(absent) for name in recipe.flat())


def test_a_phase_of_the_plan_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(f"plan: [phase1]\n{NETWORK}{PHASE1}")
    assert "phase2 is missing, but plan is ['phase1', 'phase2']" in refused_option(file, "--plan", "[phase1, phase2]")
    assert "phase2.length" in refused_option(file, "--phase2.steps", "3")


def test_a_run_begun_with_a_phase_that_it_does_not_need_goes_on_without(tmp_path: Path, recipe_file: Path) -> None:
    """As runs of recipes that had to have both."""
    stored = load_recipe(recipe_file, ["--plan", "[phase1]"])
    file = tmp_path / "one.yaml"
    file.write_text(SMALL.replace(PHASE2, ""))
    require_same_run(stored, load_recipe(file, ["--plan", "[phase1]"]), recipe_file)


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "key", "suggestion"),
    [
        ("modle: {num_layers: 3}", "modle", "model"),
        ("validation: {evry: 3}", "validation.evry", "every"),
        ("narrow:\n  step_facter: 0.5", "narrow.step_facter", "step_factor"),
    ],
)
def test_unknown_keys_are_named_with_their_line(recipe_file: Path, line: str, key: str, suggestion: str) -> None:
    text = f"{SMALL}{line}\n"
    message = refused_text(recipe_file, text)
    assert message.startswith(f"{recipe_file}:{len(text.splitlines())}: ")
    assert f'"{key}"' in message and f'{suggestion}"?' in message


def test_key_without_resemblance_gets_the_list(recipe_file: Path) -> None:
    message = refused_text(recipe_file, f"{SMALL}validation: {{zzz: 3}}\n")
    assert '"validation.zzz"' in message and "known are every, samples, mask_probability" in message


MALFORMED: dict[str, tuple[str | bytes, list[str]]] = {
    "empty": ("", ["is empty", "must be a recipe"]),
    "a list": ("- 1\n- 2\n", [":1:", "mapping"]),
    "a number": ("5\n", [":1:", "mapping"]),
    "section without content": (f"{SMALL}optimizer:\n", [":13:", "optimizer must be a mapping"]),
    "section as a list": (f"{SMALL}optimizer: [1]\n", [":13:", "optimizer must be a mapping"]),
    "bracket left open": (f"{SMALL}optimizer: {{eps: 1\n", ["not valid YAML", "small.yaml:"]),
    "tabulator": (f"{SMALL}optimizer:\n\teps: 1\n", [":14:", "not valid YAML"]),
    "two documents": (f"{SMALL}---\n{SMALL}", ["not valid YAML"]),
    "control character": (f"{SMALL}seed: \x07\n", ["small.yaml", "YAML"]),
    "not UTF-8": (SMALL.encode() + b"seed: \xff\n", ["small.yaml", "UTF-8"]),
    "key that is a list": (f"{SMALL}? [a]\n: b\n", [":13:"]),
    "object": (f"{SMALL}seed: !!python/object/apply:os.getpid []\n", ["python/object"]),
    "phase2 missing": (SMALL.splitlines(keepends=True)[0], ["phase1", "phase2"]),
    "phase1 incomplete": (SMALL.replace("  steps: 10\n", ""), ["phase1.steps"]),
    "text for a number": (f"{SMALL}seed: many\n", ["seed is many", "a whole number"]),
    "nested text for a number": (
        SMALL.replace("steps: 10", "steps: ten"),
        ["phase1.steps is ten", "a whole number"],
    ),
    "fraction for a count": (
        SMALL.replace("steps: 10", "steps: 9.5"),
        ["phase1.steps is 9.5", "a whole number"],
    ),
    "not one of the choices": (f"{SMALL}schedule: cosine\n", ["schedule is cosine", "poly_continuous"]),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused(recipe_file: Path, name: str) -> None:
    text, expected = MALFORMED[name]
    message = refused_text(recipe_file, text)
    assert all(part in message for part in expected), message


def test_absent_file_is_refused(tmp_path: Path) -> None:
    assert "absent.yaml" in refused_option(tmp_path / "absent.yaml")


# --- options and values ----------------------------------------------------------------------------------------------

BAD_OPTIONS: list[tuple[list[str], list[str]]] = [
    (["--phase1.stepz", "5"], ["--phase1.stepz", '"phase1.steps"?']),
    (["--phase1.stepz=5"], ["--phase1.stepz", '"phase1.steps"?']),
    (["--phase1.st", "5"], ["--phase1.st"]),
    (["--gpus", "5"], ["--gpus"]),
    (["stray"], ["stray"]),
    (["--phase1.steps", "many"], ["phase1.steps is many", "a whole number"]),
    (["--phase1.steps"], ["phase1.steps"]),
    (["--phase1.learning_rate", "nan"], ["phase1.learning_rate is nan"]),
    (["--precision", "fp8"], ["precision is fp8", "bf16"]),
    (["--narrow.rewind", "later"], ["narrow.rewind is later", "initial"]),
    (["--export", "[onnx]"], ["export is onnx", "earlybert"]),
    (["--plan", "[search, train]"], ["plan is train", "narrow"]),
    (["--plan", "[serach, narrow, phase1]"], ["plan is serach", 'did you mean "search"?']),
    (["--plan", "[]"], ["plan is []", "phase1"]),
    (["--plan", "[phase1, search]"], ["plan is ['phase1', 'search']", "after phase1 must come", "not search"]),
    (["--plan", "[phase1, phase1]"], ["plan is ['phase1', 'phase1']", "is one stage until the network is stacked"]),
    (["--plan", "[narrow, phase1]"], ["narrow needs search", "--ticket"]),
    (["--plan", "[search, narrow]"], ["after narrow must come phase1 or phase2, not nothing"]),
    (["--plan", "[search, phase1]"], ["plan is ['search', 'phase1']", "narrow"]),
    (["--plan", "[phase1]", "--ticket", "t.json"], ["ticket is", "narrow"]),
    (["--ticket", "t.json", "--narrow.rewind", "searched"], ["narrow.rewind", '"initial"']),
    (["--initial", ""], ["initial is empty; it must be a model, or null for fresh weights"]),
    (["--draw.head_ratio", "1.0"], ["draw.head_ratio is 1", "below 1"]),
    (["--draw.neuron_ratio", "-0.1"], ["draw.neuron_ratio is -0.1", "at least 0"]),
    (["--draw.width_multiple", "7"], ["draw.width_multiple is 7", "64"]),
    (["--draw.width_multiple", "0"], ["draw.width_multiple is 0", "positive"]),
    (["--draw.head_scope", "model"], ["draw.head_scope is model", "layer"]),
    (["--model.num_heads", "5"], ["model.num_heads is 5", "model.hidden_size, 32"]),
    (["--model.num_layers", "0"], ["model.num_layers is 0", "at least 1"]),
    (["--model.hidden_dropout", "1.0"], ["model.hidden_dropout is 1.0", "below 1"]),
    (["--model.initializer_range", "-0.02"], ["model.initializer_range is -0.02"]),
    (["--phase2.length", "65"], ["phase2.length is 65", "model.max_position_embeddings, 64"]),
    (["--phase1.length", "2"], ["phase1.length is 2", "at least 8"]),
    (["--phase1.global_batch", "0"], ["phase1.global_batch is 0", "ranks, 1"]),
    (["--phase1.micro_batch", "0"], ["phase1.micro_batch is 0", "at least 1", '"auto"']),
    (["--phase1.micro_batch", "-8"], ["phase1.micro_batch is -8", "at least 1", '"auto"']),
    (["--phase2.micro_batch", "largest"], ["phase2.micro_batch is largest; it must be a whole number or auto"]),
    (["--phase2.micro_batch", "1.5"], ["phase2.micro_batch is 1.5; it must be a whole number or auto"]),
    (["--phase2.max_predictions", "0"], ["phase2.max_predictions is 0", "at least 1"]),
    (["--phase1.steps", "0"], ["phase1.steps is 0", "at least 1"]),
    (["--phase1.learning_rate", "0"], ["phase1.learning_rate is 0", "above 0"]),
    (["--phase1.warmup", "1"], ["phase1.warmup is 1", "below 1"]),
    (["--search.steps", "11"], ["search.steps is 11", "phase1.steps, 10"]),
    (["--search.snapshot_every", "0"], ["search.snapshot_every is 0", "at least 1"]),
    (["--search.stop_window", "-1"], ["search.stop_window is -1", "at least 0"]),
    (["--search.stop_nats", "-1"], ["search.stop_nats is -1", "at least 0"]),
    (["--search.stop_nats", "1"], ["search.stop_nats is 1", "search.stop_window is 0", "give it a window"]),
    (
        ["--search.stop_nats", "1", "--search.stop_window", "2", "--losses", "[next_sentence]"],
        ["search.stop_nats is 1", "losses is ['next_sentence']", "add masked"],
    ),
    (["--search.lambda_heads", "-1"], ["search.lambda_heads is -1", "at least 0"]),
    (["--narrow.step_factor", "1.5"], ["narrow.step_factor is 1.5", "at most 1"]),
    (["--mask_probability", "0"], ["mask_probability is 0", "between 0 and 1"]),
    (["--validation.every", "0"], ["validation.every is 0", "at least 1"]),
    (["--log_every", "0"], ["log_every is 0", "at least 1"]),
    (["--optimizer.betas", "[0.9]"], ["optimizer.betas is [0.9]", "two numbers"]),
    (["--optimizer.betas", "[0.9, 1.0]"], ["optimizer.betas is [0.9, 1.0]", "below 1"]),
    (["--optimizer.eps", "-1"], ["optimizer.eps is -1"]),
    (["--optimizer.weight_decay", "-1"], ["optimizer.weight_decay is -1"]),
    (["--optimizer.max_grad_norm", "-1"], ["optimizer.max_grad_norm is -1"]),
    (["--corpus.source", "boks"], ["source is 'boks' (did you mean books?)", "pydocs"]),
    (["--corpus.vocab_size", "5"], ["vocab_size is 5", "at least"]),
]


@pytest.mark.parametrize(("options", "expected"), BAD_OPTIONS, ids=lambda value: " ".join(value)[:40])
def test_bad_values_are_refused(recipe_file: Path, options: list[str], expected: list[str]) -> None:
    message = refused_option(recipe_file, *options)
    assert all(part in message for part in expected), message


def test_messages_stay_readable(recipe_file: Path) -> None:
    """An option without resemblance to any does not print all of them."""
    assert len(refused_option(recipe_file, "--zzz", "1")) < 300


def test_global_batch_below_the_number_of_ranks_is_refused(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, [])
    check_recipe(recipe, world_size=8)
    message = refusal(lambda: check_recipe(recipe, world_size=9))
    assert message == "phase1.global_batch is 8; it must be at least the number of ranks, 9"
