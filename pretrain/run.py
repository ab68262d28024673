"""Pre-trains BERT the EarlyBERT way: search, draw, narrow, two phases. The paper from top to bottom.

    deepspeed pretrain/run.py --deepspeed ds_configs/lamb.json
    torchrun --nproc_per_node 4 pretrain/run.py --config bert_base --data CORPUS --run-dir RUN
    python pretrain/run.py

Without a checkout it is `earlybert train`, and `-m earlybert.pretrain.run` for the launchers. Called again with the
same run directory, it goes on where it was.
"""

import sys

from earlybert.core import cli

if __name__ == "__main__":
    # Before PyTorch and DeepSpeed are imported, so that what the environment tells them wrongly is said in a sentence.
    cli.main(["train", *sys.argv[1:]])
    sys.exit()

import dataclasses
import shutil
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earlybert.core import distributed, ranks
from earlybert.core.devices import keep_freed_memory, set_deterministic, set_matmul_precision
from earlybert.core.environment import environment
from earlybert.core.errors import UserError
from earlybert.core.files import read_json, write_json, write_text
from earlybert.core.locks import sole_use
from earlybert.core.progress import say
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.checkpoint.checkpoint import Checkpoint, newest_intact, signs_of_progress
from earlybert.pretrain.checkpoint.compatibility import require_run_checkpoint, require_same_training
from earlybert.pretrain.checkpoint.export import export_checkpoint
from earlybert.pretrain.checkpoint.initial import fingerprint, open_initial
from earlybert.pretrain.checkpoint.state import RunState
from earlybert.pretrain.checkpoint.writer import CheckpointWriter
from earlybert.pretrain.cost.hardware import device_name
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.initial import initial_weights
from earlybert.pretrain.network.losses.registry import loss_parts
from earlybert.pretrain.network.state import TrainingState
from earlybert.pretrain.plan.corpora import KEPT, open_corpus
from earlybert.pretrain.plan.plan import Plan, corpus_plan
from earlybert.pretrain.plan.recipe import DEFAULT_DEEPSPEED, Recipe
from earlybert.pretrain.plan.stages import build_stages
from earlybert.pretrain.plan.text import notes_on, plan_markdown
from earlybert.pretrain.report.report import write_report
from earlybert.pretrain.report.summary import print_summary
from earlybert.pretrain.ticket.search import draw_from_snapshot
from earlybert.pretrain.ticket.ticket import Ticket
from earlybert.pretrain.train.deepspeed_config import DeepSpeedFile
from earlybert.pretrain.train.engine import check_chosen_kernels, resolve_precision, work_layout
from earlybert.pretrain.train.loop import train_stage
from earlybert.pretrain.train.micro_batch import build_engine, out_of_memory_named
from earlybert.pretrain.train.recording import search_ranking
from earlybert.pretrain.train.stopping import StopRequest
from earlybert.pretrain.train.telemetry import Telemetry
from earlybert.pretrain.train.trackers.registry import open_trackers, require_installed
from earlybert.pretrain.train.trackers.tracker import Tracker

if TYPE_CHECKING:
    import torch


@dataclass
class Run:
    """What stays the same from stage to stage."""

    run_dir: Path
    recipe: Recipe
    deepspeed_file: DeepSpeedFile
    corpus: Corpus
    plan: Plan
    device: "torch.device"
    stop: StopRequest
    # Of the weights that the recipe's `initial` names.
    initial_sha256: str | None

    def initial_weights(self, config: NetworkConfig) -> dict[str, "torch.Tensor"]:
        """What the run begins with, of any full network that its plan has."""
        given = open_initial(self.recipe.initial, self.plan.full, self.corpus) if self.recipe.initial else None
        if given is not None and fingerprint(given) != self.initial_sha256:
            raise UserError(f"initial is {self.recipe.initial}, whose weights have changed since the run was started")
        return initial_weights(config, self.recipe.seed, given)

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"


def run(recipe: Recipe, run_dir: Path, *, begin_again: bool = False) -> None:
    """Carries out the recipe's plan in the run directory, from wherever it stands.

    A run whose checkpoints are lost is refused, unless told to `begin_again`.
    """
    with ExitStack() as held:
        setting = set_up(recipe, run_dir, held)
        latest = newest_checkpoint(setting)
        # A command that is refused has changed nothing until here.
        if latest is None:
            if not begin_again:
                distributed.on_rank_0(lambda: require_no_progress(setting))
            distributed.on_rank_0(lambda: clear(setting))
        distributed.on_rank_0(lambda: note_configuration(setting))
        distributed.on_rank_0(lambda: note_start(setting))
        follow_plan(setting, latest)


def follow_plan(setting: Run, latest: Checkpoint | None) -> None:
    """Stage by stage to the plan's end, or until the run is asked to stop."""
    recipe, run_dir = setting.recipe, setting.run_dir
    step = latest.state.global_step if latest else 0
    checkpoints = CheckpointWriter(setting.checkpoints, recipe.keep_checkpoints, newest_step=step)
    resume_after = step if latest else -1
    trackers: list[Tracker] = []
    distributed.on_rank_0(lambda: trackers.extend(open_trackers(recipe.trackers, run_dir, resume_after)))
    telemetry = Telemetry(
        run_dir,
        trackers,
        enabled=ranks.rank() == 0,
        resume_after=resume_after,
        layout=work_layout(recipe, setting.deepspeed_file, setting.device),
    )
    telemetry.hyperparameters(recipe.flat(), ["validation/loss", "train/loss"])
    if latest is None:
        telemetry.text("plan", plan_markdown(setting.plan), 0)
    for index, planned in enumerate(setting.plan.stages):
        if latest is not None and (latest.state.stage_index, latest.state.finished) >= (index, True):
            continue
        if planned.needs_ticket and setting.plan.ticket is None:
            setting.plan = agree_on_ticket(setting, latest)
        state = train(setting, index, latest, telemetry, checkpoints)
        if not state.finished:
            distributed.on_rank_0(telemetry.close)
            say(
                f"stopped as asked at step {state.step} of {state.stage}; run the same command again to resume",
                enabled=ranks.rank() == 0,
            )
            return
        latest = newest_checkpoint(setting)
        if latest is None:
            raise UserError(f"{setting.checkpoints}: the checkpoint that ended {state.stage} cannot be read back")
    distributed.on_rank_0(telemetry.close)
    finish(setting, latest)


def set_up(recipe: Recipe, run_dir: Path, held: ExitStack) -> Run:
    """Joins the ranks, opens the corpus and checks that everything fits together.

    The run directory is this run's alone for as long as `held` is open.
    """
    deepspeed_file = DeepSpeedFile.load(Path(recipe.deepspeed or DEFAULT_DEEPSPEED))
    require_installed(recipe.trackers)
    settled = deepspeed_file.settled(recipe.optimizer)
    if settled != recipe.optimizer:
        say(f"optimizer numbers of {deepspeed_file.path} take the recipe's places", enabled=ranks.rank() == 0)
    recipe = dataclasses.replace(recipe, optimizer=settled)
    stages = build_stages(recipe)
    deepspeed_file.require_batches(stages, ranks.world_size())
    given = given_ticket(recipe, run_dir)
    ticket = Ticket.load(given) if given else None
    corpus = open_corpus(recipe)
    for stage in stages:
        corpus.samples("train", stage.length)
        if recipe.packed_rows:
            corpus.packed_rows("train", stage.length)
    # From here on a signal is noted and heeded when training has begun; preparing a corpus is better cut short.
    stop = StopRequest()
    stop.listen()
    plan = corpus_plan(recipe, corpus)
    if ticket:
        plan.with_ticket(ticket, str(given))  # raises where it is for another network
    if recipe.deterministic:
        set_deterministic()
    device = distributed.start()
    check_chosen_kernels()
    resolve_precision(recipe, deepspeed_file, device)  # raises where the device cannot compute in it
    set_matmul_precision(recipe.matmul_precision, device)
    keep_freed_memory()
    for note in notes_on(plan):
        say(note, enabled=ranks.rank() == 0)
    initial_sha256 = distributed.on_rank_0(lambda: look_at_initial(plan, corpus)) if recipe.initial else None
    distributed.on_rank_0(lambda: held.enter_context(sole_use(run_dir, "run-dir")))
    return Run(run_dir, recipe, deepspeed_file, corpus, plan, device, stop, initial_sha256)


def look_at_initial(plan: Plan, corpus: Corpus) -> str:
    """SHA-256 of the weights that the recipe's `initial` names; says which heads they lack, which begin fresh.

    Raises UserError where they are not for this plan or this corpus.
    """
    name = plan.recipe.initial
    assert name is not None
    given = open_initial(name, plan.full, corpus)
    if lacking := [part.title for part in loss_parts(plan.full.losses) if not part.parameters.keys() <= given.keys()]:
        say(f"{name} (initial) has no complete head for {' and '.join(lacking)}; what is missing begins fresh")
    return fingerprint(given)


def given_ticket(recipe: Recipe, run_dir: Path) -> Path | None:
    """The file of the run's own copy of its ticket, else of the one given; None where the search has yet to draw it."""
    own = run_dir / "ticket.json"
    return own if own.is_file() else Path(recipe.ticket) if recipe.ticket else None


def clear(setting: Run) -> None:
    """Removes what an earlier beginning has left, perhaps of another corpus: what was kept of that, search, ticket."""
    for name in (KEPT, "search"):
        shutil.rmtree(setting.run_dir / name, ignore_errors=True)
    if not setting.recipe.ticket:
        (setting.run_dir / "ticket.json").unlink(missing_ok=True)


def note_configuration(setting: Run) -> None:
    """Writes what the run is going to do, and what it will need of its corpus when that is gone.

    Raises UserError where the run directory cannot be written to.
    """
    run_dir, plan, corpus = setting.run_dir, setting.plan, setting.corpus
    given = given_ticket(setting.recipe, run_dir)
    known = plan.with_ticket(Ticket.load(given), str(given)) if given else plan
    try:
        # Where the corpus lies is part of it: the recipe alone would look for it relative to the current folder.
        dataclasses.replace(setting.recipe, data=str(corpus.directory.resolve())).save(run_dir / "config.yaml")
        write_json(run_dir / "plan.json", known.content())
        corpus.keep(run_dir / KEPT)
    except OSError as error:
        raise UserError(
            f"run-dir is {run_dir}, which cannot be written to ({error.strerror}); name a folder of your own with room"
        ) from None


def note_start(setting: Run) -> None:
    """Adds to the record of where the run was started; neither a full disk nor a damaged record ends it."""
    path = setting.run_dir / "environment.json"
    machine = environment() | {"device": device_name(setting.device), "ranks": ranks.world_size()}
    before: list[dict[str, Any]] = []
    with suppress(OSError, UserError):
        before = read_json(path) if path.is_file() else []
    with suppress(OSError):
        write_json(path, [*before, machine])


def newest_checkpoint(setting: Run) -> Checkpoint | None:
    """The newest intact checkpoint, chosen by rank 0 for all; None when the run has just begun."""
    checkpoint = distributed.on_rank_0(lambda: newest_intact(setting.checkpoints, say))
    if checkpoint is None:
        return None
    require_run_checkpoint(checkpoint, setting.run_dir, setting.plan, setting.corpus)
    recipe, file = setting.recipe, setting.deepspeed_file
    optimizer = file.identity(recipe.optimizer)
    require_same_training(checkpoint, file.path, optimizer, recipe.initial, setting.initial_sha256)
    return checkpoint


def require_no_progress(setting: Run) -> None:
    """Raises UserError where checkpoints are lost: to begin anew would write over what is left of the run."""
    if signs := signs_of_progress(setting.run_dir, setting.recipe.checkpoint_every):
        raise UserError(
            f"{setting.run_dir}: has been trained before, but {signs}; put the checkpoints back, or use --begin_again "
            "to lose that work"
        )


def agree_on_ticket(setting: Run, searched: Checkpoint | None) -> Plan:
    """Rank 0 draws (or takes the given or already drawn ticket) and writes it; every rank gets it, and all compare.

    Returns the plan with it.
    """
    path = setting.run_dir / "ticket.json"

    def settle() -> dict[str, Any]:
        ticket = find_ticket(setting, searched)
        ticket.save(path)
        write_json(setting.run_dir / "plan.json", setting.plan.with_ticket(ticket, str(path)).content())
        return ticket.content() | {"sha256": ticket.sha256}

    ticket = Ticket.from_content(distributed.on_rank_0(settle), str(path))
    hashes = set(distributed.gather_objects(ticket.sha256))
    if hashes != {ticket.sha256}:
        raise RuntimeError(f"the ranks hold different tickets: {sorted(hashes)}")
    return setting.plan.with_ticket(ticket, str(path))


def find_ticket(setting: Run, searched: Checkpoint | None) -> Ticket:
    """The run's own ticket, else the given one, else one drawn where the search ended."""
    if given := given_ticket(setting.recipe, setting.run_dir):
        return Ticket.load(given)
    assert searched is not None
    recipe, plan, step = setting.recipe, setting.plan, searched.state.step
    wider = plan.wider_tickets(recipe.draw)
    return draw_from_snapshot(setting.run_dir / "search", step, plan.ticket_shape, recipe.draw, recipe.seed, wider)


def begin(setting: Run, index: int, latest: Checkpoint | None) -> tuple[TrainingState, RunState]:
    """What the stage makes of where the one before ended, and where in the run that is."""
    planned = setting.plan.stages[index]
    before = latest.training_state if latest else None
    start = planned.stage.begin.begin(before, planned.before, setting.plan.network(index), setting.initial_weights)
    state = RunState(
        stage=planned.stage.name,
        stage_index=index,
        position=planned.stage.first_position,
        steps_before=latest.state.global_step if latest else 0,
        ticket_sha256=setting.plan.ticket.sha256 if setting.plan.ticket else None,
        corpus=setting.corpus.fingerprint,
        optimizer=setting.deepspeed_file.identity(setting.recipe.optimizer),
        initial_sha256=setting.initial_sha256,
    )
    return start, state


def resume(latest: Checkpoint) -> tuple[TrainingState, RunState]:
    """The stage as its newest checkpoint has it."""
    say(f"resuming from {latest.path}: step {latest.state.step}", enabled=ranks.rank() == 0)
    return latest.training_state, latest.state


def train(
    setting: Run, index: int, latest: Checkpoint | None, telemetry: Telemetry, writer: CheckpointWriter
) -> RunState:
    """Builds the stage's engine, trains it, takes it down; goes on with the stage where the checkpoint is one of it.

    Returns where the run is then: not at the stage's end when it was asked to stop before.
    """
    stage, config, ticket = setting.plan.stages[index].stage, setting.plan.network(index), setting.plan.ticket
    if latest is not None and latest.state.stage_index == index:
        start, state = resume(latest)
    else:
        start, state = begin(setting, index, latest)
    engine = build_engine(config, start, stage, setting.recipe, setting.deepspeed_file, setting.device, state)
    say(
        f"{stage.name}: {stage.steps} steps of {stage.global_batch} sequences of {stage.length} tokens, "
        f"{config.num_hidden_layers} layers, {sum(config.heads)} heads, {sum(config.neurons)} neurons, "
        f"{engine.precision}, micro-batches of {engine.micro_batch}"
        f"{', compiled in the first step' if engine.compiled else ''}",
        enabled=ranks.rank() == 0,
    )
    with suppress(OSError):  # for the record only: a full disk does not end a run
        if ranks.rank() == 0:
            write_json(setting.run_dir / "deepspeed" / f"{stage.name}.json", engine.resolved)
    if ticket is not None and stage.begin.needs_ticket and state.step == 0:
        # At the first step that it is trained for, so that a resumed run writes it again exactly where this is dropped.
        telemetry.ticket(ticket, state.global_step + 1)
    ranking = search_ranking(setting.recipe, start.importance)
    # The engine has its own copy of the weights.
    del start
    with out_of_memory_named(stage, engine.micro_batch, setting.device):
        train_stage(
            engine,
            state,
            stage,
            setting.recipe,
            setting.corpus,
            ranking=ranking,
            search_folder=setting.run_dir / "search",
            telemetry=telemetry,
            writer=writer,
            stop=setting.stop,
        )
    engine.destroy()
    return state


def finish(setting: Run, latest: Checkpoint | None) -> None:
    """Exports the model, writes the report and, last, DONE."""
    if setting.plan.stages[-1].stage.searching:
        # The plan ends with the search: its result is the ticket.
        agree_on_ticket(setting, latest)

    def conclude() -> None:
        for form in setting.recipe.export:
            export_checkpoint(setting.run_dir, form, setting.run_dir / "export" / form)
        (outcome,) = write_report([setting.run_dir], setting.run_dir).values()
        write_text(setting.run_dir / "DONE", time.strftime("%Y-%m-%dT%H:%M:%SZ\n", time.gmtime()))
        print_summary(outcome)

    distributed.on_rank_0(conclude)


def main(argv: list[str] | None = None) -> None:
    """What the script does, for those who import it; without arguments with those of the process."""
    cli.main(["train", *(sys.argv[1:] if argv is None else argv)])
