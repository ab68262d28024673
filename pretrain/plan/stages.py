"""The stages of a recipe's plan: what each trains on, for how long, with which learning rates, and how it begins."""

from collections import Counter
from dataclasses import dataclass
from itertools import takewhile

from earlybert.pretrain.plan.borders.border import Border
from earlybert.pretrain.plan.borders.initial import Initial
from earlybert.pretrain.plan.borders.lengthen import Lengthen
from earlybert.pretrain.plan.grammar import STAGE_WORDS, StageWord
from earlybert.pretrain.plan.growth import grown_schedule
from earlybert.pretrain.plan.recipe import MicroBatch, Recipe
from earlybert.pretrain.plan.schedule import MaskSchedule, Schedule, whole_steps


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of training with one network, one sequence length, one batch size and one schedule.

    `name` is a label, for people, files and metrics; what the stage is, the other fields say. `phase` is the recipe's
    section that its numbers come from, `begin` says where its weights come from, as the border's occurrence number
    `turn` in the plan. `schedule.start` is also the step of the phase's data where the stage begins: however often
    phase 1 is cut, every step has the samples of the dense run.
    """

    name: str
    phase: str
    searching: bool
    begin: Border
    turn: int
    length: int
    max_predictions: int
    global_batch: int
    micro_batch: MicroBatch
    steps: int
    schedule: Schedule
    masks: MaskSchedule

    @property
    def first_position(self) -> int:
        """Where in the data the stage begins, samples."""
        return self.schedule.start * self.global_batch

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, of full sequences."""
        return self.global_batch * self.length


def build_stages(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe's plan, whose words must have passed `check_recipe`."""
    stages: list[Stage] = []
    begin: Border = Initial()
    start = 0
    for index, word in enumerate(recipe.plan):
        if word in recipe.borders:
            begin = recipe.borders[word]
            continue
        facts = STAGE_WORDS[word]
        if facts.phase == "phase2":
            start = 0
        turn = max(0, recipe.plan[:index].count(begin.word) - 1)
        stages.append(_stage(recipe, index, facts, begin, turn, start))
        # A ticket searched for before anything is trained starts over; one searched for on the way goes on.
        start = 0 if facts.searching and len(stages) == 1 else start + stages[-1].steps
        begin = Lengthen(trained_length=stages[-1].length, new_positions=recipe.new_positions)
    return stages


def _stage(recipe: Recipe, index: int, facts: StageWord, begin: Border, turn: int, start: int) -> Stage:
    """The stage of the plan's word number `index`, which begins at step `start` of its phase."""
    phase = recipe.phase(facts.phase)
    dense = facts.searching and index == 0  # then it has the curves of the full network in the full time
    total = phase.steps if dense else phase_steps(recipe, facts.phase)
    schedule = Schedule(start=start, total=total, peak=phase.learning_rate, warmup=phase.warmup, form=recipe.schedule)
    name, end = recipe.plan[index], total
    if facts.phase == "phase1":
        for border in recipe.plan_borders:
            schedule = border.phase1_schedule(schedule)
        schedule = grown_schedule(recipe, schedule)
        if not facts.searching:
            name, share = part_of_phase1(recipe, index)
            end = whole_steps(total, share)
    return Stage(
        name=name,
        phase=facts.phase,
        searching=facts.searching,
        begin=begin,
        turn=turn,
        length=phase.length,
        max_predictions=phase.max_predictions or predictions(max(recipe.mask_shares), phase.length),
        global_batch=phase.global_batch,
        micro_batch=phase.micro_batch,
        steps=recipe.search.steps if facts.searching else end - start,
        schedule=schedule,
        masks=_masks(recipe, facts.phase, dense=dense),
    )


def _masks(recipe: Recipe, phase: str, *, dense: bool) -> MaskSchedule:
    """Of a phase, in the steps of the plan or of dense training."""
    first, last = recipe.mask_shares
    phases = dict.fromkeys(STAGE_WORDS[word].phase for word in recipe.plan if word in STAGE_WORDS)
    steps = {name: recipe.phase(name).steps if dense else phase_steps(recipe, name) for name in phases}
    before = sum(steps[name] for name in takewhile(lambda name: name != phase, phases))
    return MaskSchedule(first=first, last=last, start=before, total=sum(steps.values()))


def predictions(share: float, length: int) -> int:
    """How many tokens of a full sequence are to be predicted."""
    return max(1, int(share * length + 0.5))


def phase_steps(recipe: Recipe, phase: str) -> int:
    """Steps that the plan trains a phase for."""
    share = 1.0
    for border in recipe.plan_borders:
        share *= border.budget()
    return whole_steps(recipe.phase(phase).steps, share)


def part_of_phase1(recipe: Recipe, index: int) -> tuple[str, float]:
    """What the part of phase 1 that the plan's word `index` trains is called, and the share at which it ends."""
    before = Counter(recipe.plan[:index])
    for word in recipe.plan[index:]:
        border = recipe.borders.get(word)
        if border is not None and border.cuts_phase1_at:
            turn = before[word]
            return f"phase1-{border.part_before(turn)}", border.cuts_phase1_at[turn]
    return "phase1", 1.0
