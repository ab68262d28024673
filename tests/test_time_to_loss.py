"""The race's arithmetic, on curves whose answers are known; how its calls end."""

import dataclasses
import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from race import hugging_face
from race.arms import CONTROLS, SHALLOW, Arm, arms, command, experiments, references, run_dir, write_recipe
from race.outcome import EFFORTS, Curve, best, curve, race, reached, rows, spread, verdicts
from race.step_times import measure, stage_shapes
from time_to_loss import finished_runs, main, options, train

from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.prepare import prepare
from earlybert.pretrain.checkpoint.metrics import of_kind
from earlybert.pretrain.network.bert_format import to_bert
from earlybert.pretrain.network.initial import initial_weights
from earlybert.pretrain.plan.checks import check_recipe
from earlybert.pretrain.plan.plan import corpus_plan
from earlybert.pretrain.plan.recipe import load_recipe
from earlybert.pretrain.plan.stages import build_stages
from earlybert.pretrain.report.timeline import read_lines
from earlybert.pretrain.train.batches import stage_loader
from earlybert.pretrain.train.deepspeed_config import DeepSpeedFile
from tests.conftest import write_text
from tests.in_process import train_here


def test_a_loss_is_reached_between_two_validations() -> None:
    found: dict[str, list[float]] = {"steps": [100, 200, 300], "loss": [6.0, 5.0, 4.0]}
    assert reached(found, "steps", 4.5) == pytest.approx(250)
    assert reached(found, "steps", 6.5) == 100
    assert reached(found, "steps", 4.0) == 300
    assert reached(found, "steps", 3.9) is None
    assert reached({"steps": [1, 2, 3], "loss": [5.0, 7.0, 6.0]}, "steps", 6.5) == 1


def write_run(folder: Path, stages: dict[str, tuple[int, float]], losses: list[tuple[str, int, float]]) -> None:
    """A run of stages, (steps, FLOPs a step) each, and of validations, (stage, step, loss), one a second."""
    folder.mkdir()
    described = [{"name": name, "steps": steps, "flops_per_step": flops} for name, (steps, flops) in stages.items()]
    (folder / "plan.json").write_text(json.dumps({"stages": described}))
    lines = [{"kind": "start", "time": 0.0, "global_step": 0, "ranks": 1, "device": "CPU"}]
    before = dict.fromkeys(stages, 0)
    for name, following in zip(list(stages), list(stages)[1:], strict=False):
        before[following] = before[name] + stages[name][0]
    for second, (stage, step, loss) in enumerate(losses, start=1):
        scores = {"loss": loss, "masked_loss": loss, "masked_accuracy": 1 / loss, "next_sentence_accuracy": None}
        place = {"stage": stage, "step": step, "global_step": before[stage] + step}
        lines.append({"kind": "validation", "time": float(second), **place, **scores})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_was_spent_before_counts(tmp_path: Path) -> None:
    """A search of 10 dense steps, then narrow ones at 0.7 of the FLOPs and 0.8 of the time."""
    stages = {"search": (10, 100.0), "phase1": (20, 70.0)}
    losses = [("search", 10, 7.0), ("phase1", 10, 6.0), ("phase1", 20, 5.0)]
    write_run(tmp_path / "early", stages, losses)
    found = curve(tmp_path / "early", {"search": 1.0, "phase1": 0.8})
    assert found["steps"] == [10, 20, 30]
    assert found["flops"] == pytest.approx([1000, 1700, 2400])
    assert found["medians"] == pytest.approx([10, 18, 26])
    assert found["clock"] == [1, 2, 3]
    write_run(tmp_path / "dense", {"phase1": (30, 100.0)}, [("phase1", 15, 6.5), ("phase1", 30, 5.5)])
    dense = curve(tmp_path / "dense", {"phase1": 1.0})
    table = race({"dense": {0: dense, 1: dense}, "early": {0: found, 2: found}}, {"LAMB": "dense"})
    assert table["early"]["seed"] == [0]  # without a dense run of its seed there is nothing to compare
    assert table["early"]["flops"] == [pytest.approx(2400 / 3000)]
    assert table["early"]["medians_to_LAMB"] == [pytest.approx(22 / 30)]
    assert table["early"]["flops_to_LAMB"] == [pytest.approx(2050 / 3000)]
    assert table["dense"]["medians_to_LAMB"] == [1.0, 1.0]


def test_never_reached_is_said() -> None:
    assert spread([None, None], ".2f") == "not reached"
    assert spread([0.5, None, 0.7], ".2f") == "0.60 ± 0.14 (2 of 3)"
    assert spread([0.5], ".2f") == "0.50"


def made_up(seconds: list[float], losses: list[float]) -> Curve:
    """A curve whose every effort is these seconds."""
    return {**dict.fromkeys(EFFORTS, seconds), "loss": losses, "accuracy": [0.5] * len(losses)}


def test_shares_are_of_each_reference() -> None:
    """The plan meets LAMB's 5 at second 25 of 100, Muon's 4 at second 30 of 50, and never Hugging Face's 3.5."""
    curves = {
        "dense": {0: made_up([50, 100], [6.0, 5.0])},
        "Muon": {0: made_up([25, 50], [5.0, 4.0])},
        "Trainer": {0: made_up([100, 200], [6.0, 3.5]), 1: made_up([100], [3.0])},
        "plan": {0: made_up([20, 30], [6.0, 4.0]), 1: made_up([30], [4.0])},
    }
    references = {"LAMB": "dense", "Muon": "Muon", "Hugging Face": "Trainer"}
    table = race(curves, references)
    assert table["plan"]["medians"] == [pytest.approx(30 / 100)]
    assert table["plan"]["clock_to_LAMB"] == [pytest.approx(25 / 100)]
    assert table["plan"]["medians_to_Muon"] == [pytest.approx(30 / 50)]
    assert table["plan"]["medians_to_Hugging Face"] == [None]
    header, *lines = rows(table, list(references), unigram=5.6)
    line = dict(zip(header, lines[3], strict=True))
    assert line["to LAMB's loss: seconds"] == "0.250"
    assert line["to Hugging Face's loss: clock"] == "not reached"
    assert line["below frequencies"] == "1.60"
    assert dict(zip(header, lines[0], strict=True))["below frequencies"] == "0.60 (proves nothing)"


def test_a_reference_that_lacks_seeds_is_compared_with_the_others() -> None:
    """The plan meets the 4 that the Trainer ends at with seed 1 at second 30 of 200, and never the 3 of seed 2."""
    curves = {
        "dense": {seed: made_up([50, 100], [6.0, 5.0]) for seed in (0, 1, 2)},
        "Trainer": {seed: made_up([100, 200], [6.0, 5.0 - seed]) for seed in (1, 2)},
        "plan": {seed: made_up([20, 30], [6.0, 4.0]) for seed in (0, 1, 2)},
        "first seed": {0: made_up([20, 30], [6.0, 4.0])},
    }
    table = race(curves, {"LAMB": "dense", "Hugging Face": "Trainer"})
    shares = zip(table["plan"]["seed"], table["plan"]["clock_to_Hugging Face"], strict=True)
    assert dict(shares) == {0: "no such seed", 1: pytest.approx(30 / 200), 2: None}
    header, *lines = rows(table, ["LAMB", "Hugging Face"], unigram=6.6)
    printed = {line[0]: line[header.index("to Hugging Face's loss: clock")] for line in lines}
    assert printed["plan"] == "0.150 (1 of 2), with 2 of 3 seeds"
    assert printed["Trainer"] == "1.000 ± 0.000"
    assert printed["first seed"] == "no such seed"


def test_the_best_rate_is_that_of_common_seeds() -> None:
    """The second rate's only low loss is of a seed that the first one has not run."""
    curves = {
        "one": {0: made_up([1], [5.0]), 1: made_up([1], [5.2])},
        "two": {0: made_up([1], [5.3]), 1: made_up([1], [5.1]), 2: made_up([1], [1.0])},
        "three": {},
    }
    assert best(curves, ["one", "two", "three"]) == "one"
    assert best(curves, ["three"]) is None
    with pytest.raises(SystemExit, match="no seed in common"):
        best({"one": {0: made_up([1], [5.0])}, "two": {1: made_up([1], [5.0])}}, ["one", "two"])


def test_what_the_table_does_not_prove_is_said() -> None:
    """At 6.6 for word frequencies, 5.1 is just enough and 5.2 is not."""
    deep = {"seed": [0, 1], "loss": [4.0, 4.4]}
    table = {"dense": deep, "weak": {"seed": [0], "loss": [5.2]}, "enough": {"seed": [0], "loss": [5.1 - 1e-9]}}
    controls = {"shallow": "dense"}
    (weak, missing) = verdicts(table, 6.6, controls)
    assert weak.startswith("weak: ends less than 1.5 nats")
    assert "has not been run" in missing
    # On the seed that both have, 4.0 is below 4.1; the mean over all of the deep one's seeds is above it.
    table = {"dense": deep, "shallow": {"seed": [0], "loss": [4.1]}}
    assert verdicts(table, 6.6, controls) == []
    (equal,) = verdicts(table | {"shallow": {"seed": [0], "loss": [4.0]}}, 6.6, controls)
    assert "not above the 4.0000 of dense" in equal
    # Each is held against the network with its own optimizer; a run with no common seed says nothing.
    table |= {"dense, Muon": {"seed": [0], "loss": [3.5]}, "shallow, Muon": {"seed": [1], "loss": [3.6]}}
    (apart,) = verdicts(table, 6.6, controls | {"shallow, Muon": "dense, Muon"})
    assert apart.startswith("shallow, Muon: has not been run with a seed of dense, Muon")


def test_an_arm_is_asked_to_stop_when_the_budget_ends() -> None:
    began = time.monotonic()
    train([sys.executable, "-c", "import time; time.sleep(60)"], 0.5)  # before it listens to any signal
    assert time.monotonic() - began < 30
    with pytest.raises(SystemExit, match="status 3"):
        train([sys.executable, "-c", "raise SystemExit(3)"], 30)


def test_all_calls_have_one_recipe(tmp_path: Path) -> None:
    write_recipe("cpu", tmp_path, {"phase1.steps": 30})
    write_recipe("cpu", tmp_path, {"phase1.steps": 40, "seed": 3})  # nothing has begun
    (tmp_path / "dense-seed0").mkdir()
    path = write_recipe("cpu", tmp_path, {"phase1.steps": 40, "seed": 3})
    with pytest.raises(SystemExit, match="has another phase1 and phase2 and seed, and runs have begun with it"):
        write_recipe("cpu", tmp_path, {"phase1.steps": 30})
    assert "steps: 40" in path.read_text()


def test_a_rate_may_be_written_as_yaml_takes_for_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["time_to_loss.py", "--phase1.learning_rate", "8e-3", "--phase1.steps", "200"])
    given, changes = options()
    recipe = write_recipe("cpu", tmp_path, changes)
    line = command(given.arms["dense, 0.7 of the rate"], recipe, tmp_path, tmp_path / "run", 0)
    assert line[-4:] == ["--phase1.steps", "200", "--phase1.learning_rate", "0.0056"]


def test_a_corpus_that_is_not_there_is_told_of_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    work_dir, nowhere = tmp_path / "work", tmp_path / "nowhere"
    monkeypatch.setattr(sys, "argv", ["time_to_loss.py", "--data", str(nowhere), "--work-dir", str(work_dir)])
    with pytest.raises(SystemExit, match=r"^time_to_loss: .*nowhere is no complete corpus"):
        main()
    assert not list(work_dir.iterdir())


def test_only_folders_that_the_race_made_are_runs(tmp_path: Path) -> None:
    made = {seed: run_dir(tmp_path, "random ticket", seed) for seed in (0, 3, 12)}
    others = [tmp_path / f"random-ticket-seed{rest}" for rest in ("0-backup", "0.old", "", "s", "-1")]
    for folder in (*made.values(), *others, tmp_path / "ticket-seed5"):
        folder.mkdir()
        (folder / "DONE").touch()
    (made[12] / "DONE").unlink()
    assert finished_runs(tmp_path, ["random ticket"]) == {"random ticket": {0: made[0], 3: made[3]}}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_arm_has_a_plan(device: str, tmp_path: Path) -> None:
    """Fractions of the dense run's steps, what grows and on which curve; only the arms that say so differ in them."""
    recipe = write_recipe(device, tmp_path, {})
    found = {}
    for name, arm in (arms(device) | (experiments() if device == "cpu" else {})).items():
        if isinstance(arm, Arm) and arm.widths_of is None:
            line = command(arm, recipe, tmp_path, tmp_path / "run", 0)
            pairs = zip(line[2::2], line[3::2], strict=True)
            overrides = [f"{field}={value}" for field, value in pairs if field not in ("--config", "--run-dir")]
            found[name] = load_recipe(recipe, overrides)
            check_recipe(found[name], 1)
    dense, plan = found["dense"], found["best plan"]
    stages = build_stages(plan)
    assert sum(stage.steps for stage in stages) == dense.phase("phase1").steps / 2
    assert [plan.stack.layers[0], plan.model.num_layers] == [found[SHALLOW].model.num_layers, dense.model.num_layers]
    for shallow, deep in CONTROLS.items():
        changed = {"num_layers": dense.model.num_layers}
        assert dataclasses.replace(found[shallow].model, **changed) == found[deep].model, shallow
        assert found[shallow].phase("phase1") == found[deep].phase("phase1"), shallow
        assert found[shallow].deepspeed == found[deep].deepspeed, shallow
    assert (stages[0].masks.share_at(0), stages[-1].masks.last) == (0.3, 0.15)
    assert plan.deepspeed is not None
    assert DeepSpeedFile.load(Path(plan.deepspeed)).optimizer == "Muon"
    rates = [recipe.phase("phase1").learning_rate for recipe in (found["dense, 0.7 of the rate"], dense)]
    assert rates[0] == pytest.approx(0.7 * rates[1])
    assert found["ticket, grown"].widen.to == ["full"]
    if device == "cpu":
        larger = {name for name, recipe in found.items() if recipe.model.initializer_range == 0.05}
        names = ("dense", "dense, Muon", "EarlyBERT", "shallow network")
        assert larger == {f"{name}, larger initial weights" for name in names}
    assert set().union(*references(device).values()) <= arms(device).keys()


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small corpus, and the recipe of a race of 12 steps on it."""
    folder = tmp_path_factory.mktemp("race")
    write_text(folder / "text.txt")
    config = CorpusConfig(
        source="text",
        files=[str(folder / "text.txt")],
        vocab_size=300,
        lengths=[32],
        objective="full-sentences",
        validation_fraction=0.1,
    )
    prepare(config, folder / "corpus", workers=1)
    phase = {"length": 32, "global_batch": 8, "micro_batch": 8, "steps": 12, "learning_rate": 1e-2, "warmup": 0.25}
    shape = {"hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "max_position_embeddings": 32}
    numbers: dict[str, Any] = {f"phase1.{name}": value for name, value in phase.items()}
    numbers |= {f"model.{name}": value for name, value in shape.items()}
    numbers |= {"validation.every": 4, "validation.samples": 20, "checkpoint_every": 6, "matmul_precision": "highest"}
    write_recipe("cpu", folder, numbers)
    return folder


def run_arm(folder: Path, name: str) -> Path:
    """Runs an arm with seed 0 in this process; returns its run directory."""
    out = run_dir(folder, name, 0)
    _, script, *arguments = command(arms("cpu")[name], folder / "recipe.yaml", folder / "corpus", out, 0)
    if Path(script).name == "run.py":
        status, output = train_here(folder, *arguments)
        assert status == 0, output
    else:
        hugging_face.main(arguments)
    return out


def validation_losses(run: Path) -> dict[int, float]:
    return {line["global_step"]: line["loss"] for line in of_kind(read_lines(run), "validation")}


def test_larger_initial_weights_reach_hugging_face(rehearsal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[hugging_face.Setting] = []
    monkeypatch.setattr(hugging_face, "train", lambda setting, stop: begun.append(setting))
    for name in ("Hugging Face, AdamW 0.001", "Hugging Face, AdamW 0.001, larger initial weights"):
        shutil.rmtree(run_arm(rehearsal, name))
    spreads = [float(hugging_face.model_of(setting).bert.embeddings.word_embeddings.weight.std()) for setting in begun]
    assert spreads == pytest.approx([0.02, 0.05], rel=0.03)


def test_an_arm_of_hugging_face_is_resumed_where_it_was(rehearsal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked to stop after step 5 and called again, it is bit for bit where it would have been."""
    name = "Hugging Face, AdamW 0.001"
    whole = run_arm(rehearsal, name)
    losses = validation_losses(whole)
    assert list(losses) == [4, 8, 12]
    assert (whole / "DONE").is_file()
    whole.rename(rehearsal / "whole")
    original = hugging_face.Watch.on_step_end

    def asked_after_5(watch: hugging_face.Watch, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        watch.stop.signal = "SIGTERM" if state.global_step == 5 else None
        original(watch, args, state, control, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(hugging_face.Watch, "on_step_end", asked_after_5)
        interrupted = run_arm(rehearsal, name)
    assert list(validation_losses(interrupted)) == [4]
    assert not (interrupted / "DONE").is_file()
    assert validation_losses(run_arm(rehearsal, name)) == losses


def test_hugging_face_predicts_the_same_tokens(rehearsal: Path) -> None:
    """Its labels are the corpus's own tokens, and its validation is the mean that the model's own loss gives."""
    changes = [f"--data={rehearsal / 'corpus'}", "--plan=[phase1]", "--seed=0"]
    setting = hugging_face.Setting.of(rehearsal / "none", load_recipe(rehearsal / "recipe.yaml", changes))
    loader = stage_loader(setting.corpus, "validation", setting.stage, setting.recipe, 20)
    batches = loader.load(0).kept()
    (batch,) = batches.batches
    samples = loader.samples.rows(loader.sample_indices(0, 0))
    inputs = setting.inputs(batch)
    attended, labelled = inputs["attention_mask"].bool(), inputs["labels"] != -100
    originals_T = torch.from_numpy(samples.input_ids.astype(np.int64))
    assert torch.equal(inputs["labels"][labelled], originals_T[labelled[attended]])
    assert torch.equal(inputs["input_ids"][~labelled & attended], originals_T[~labelled[attended]])
    assert 0.1 < labelled.sum() / attended.sum() < 0.2
    model = hugging_face.model_of(setting).eval()
    with torch.no_grad():
        expected = model(**inputs).loss.item()
    assert hugging_face.validate(model, setting, batches)["masked_loss"] == pytest.approx(expected, rel=1e-6)


def test_hugging_face_and_our_adamw_are_one_run(rehearsal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same weights, so samples, masks, rates, clipping and the optimizer's numbers are the same."""
    file = {"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}, "zero_optimization": {"stage": 1}}
    (rehearsal / "adamw.json").write_text(json.dumps(file))
    common = ["--config", str(rehearsal / "recipe.yaml"), "--data", str(rehearsal / "corpus"), "--seed", "0"]
    own = ["--plan", "[phase1]", "--losses", "[masked]", "--deepspeed", "adamw.json", "--phase1.learning_rate", "1e-3"]
    status, output = train_here(rehearsal, *common, *own, "--run-dir", "ours")
    assert status == 0, output

    def with_our_weights(setting: hugging_face.Setting) -> torch.nn.Module:
        network = corpus_plan(setting.recipe, setting.corpus).full
        return to_bert(network, initial_weights(network, setting.recipe.seed))

    monkeypatch.setattr(hugging_face, "model_of", with_our_weights)
    hugging_face.main([*common, "--run-dir", str(rehearsal / "theirs"), "--learning_rate", "1e-3"])
    ours, theirs = validation_losses(rehearsal / "ours"), validation_losses(rehearsal / "theirs")
    assert ours[12] < ours[4] - 0.1
    assert theirs == pytest.approx(ours, rel=1e-6)


@pytest.mark.slow
def test_rehearsal_of_a_race(rehearsal: Path) -> None:
    """Dense, the best plan (Muon, growth, masks) and Hugging Face: all stages are timed and end in one table."""
    names = ["dense", "best plan", "Hugging Face, AdamW 0.0005"]
    runs = {name: run_arm(rehearsal, name) for name in names}
    seconds = measure(list(runs.values()), rounds=1)
    # Muon's two shapes, whose shares of masked tokens differ as well, LAMB's and the Trainer's.
    assert len(seconds) == 4
    assert all(value > 0 for value in seconds.values())
    curves = {
        name: {0: curve(run, {stage: seconds[shape.key] for stage, shape in stage_shapes(run).items()})}
        for name, run in runs.items()
    }
    assert curves["best plan"][0]["steps"][-1] == 6
    table = race(curves, {"LAMB": "dense", "Hugging Face": names[2]})
    assert table["dense"]["medians_to_LAMB"] == [1.0]
    assert table[names[2]]["medians_to_Hugging Face"][0] <= 1.0
    assert table["best plan"]["flops"][0] < 0.5
