"""`earlybert ticket show|compare|random|all|draw|tune`."""

import dataclasses
from argparse import Namespace
from pathlib import Path

from earlybert.core.arguments import ArgumentParser
from earlybert.core.errors import UserError
from earlybert.pretrain.commands.recipe import recipe_to_begin
from earlybert.pretrain.commands.tune import add_tune, tune
from earlybert.pretrain.plan.checks import check_recipe
from earlybert.pretrain.plan.plan import ticket_plan
from earlybert.pretrain.plan.recipe import Recipe, load_recipe, recipe_path, run_config_path
from earlybert.pretrain.ticket.drawing import all_ticket, mask_distance, random_ticket, random_ticket_like
from earlybert.pretrain.ticket.search import draw_from_snapshot
from earlybert.pretrain.ticket.ticket import Ticket, TicketRule, masks


def main(argv: list[str]) -> None:
    """Shows, compares or makes tickets."""
    parser = ArgumentParser("earlybert ticket", description=main.__doc__)
    actions = parser.add_subparsers(dest="action", required=True, parser_class=ArgumentParser)
    show = actions.add_parser("show", help="what a ticket keeps and where it came from")
    show.add_argument("ticket", type=Path, help="a ticket's file, or a run that has one")
    compare = actions.add_parser("compare", help="mask distance of two tickets, layer by layer")
    compare.add_argument("first", type=Path)
    compare.add_argument("second", type=Path)
    drawn = actions.add_parser("draw", help="draw again from a run's recorded coefficients")
    drawn.add_argument("run_dir", type=Path)
    drawn.add_argument("--step", type=int, help="a recorded step; default the last")
    drawn.add_argument("--out", type=Path, required=True)
    for field in dataclasses.fields(TicketRule):
        drawn.add_argument(f"--{field.name}", type=type(field.default), help="default: the run's")
    for action, purpose in (("random", "a baseline chosen by chance"), ("all", "the baseline that cuts nothing")):
        made = actions.add_parser(action, help=purpose)
        made.add_argument("--config", help="recipe whose model and draw rule to use, with --FIELD VALUE overrides")
        made.add_argument("--out", type=Path, required=True)
        if action == "random":
            made.add_argument("--like", type=Path, help="a ticket, or a run, whose width in every layer to copy")
            made.add_argument("--seed", type=int, default=0)
    add_tune(actions)
    for its_parser in actions.choices.values():
        its_parser.set_defaults(parser=its_parser)
    arguments, overrides = parser.parse_known_args(argv)
    if overrides and not getattr(arguments, "config", None):
        arguments.parser.error(f"unrecognized arguments: {overrides[0]}")
    if (seed := getattr(arguments, "seed", 0)) < 0:
        raise UserError(f"--seed is {seed}; it must be at least 0")
    commands = {"show": _show, "compare": _compare, "draw": _draw, "random": _random, "all": _all, "tune": tune}
    commands[arguments.action](arguments, overrides)


def _show(arguments: Namespace, _: list[str]) -> None:
    print_ticket(Ticket.load(arguments.ticket))


def print_ticket(ticket: Ticket) -> None:
    """What a ticket keeps, layer by layer, and where it came from."""
    source = {name: value for name, value in dataclasses.asdict(ticket.source).items() if value is not None}
    rule = dataclasses.asdict(ticket.rule)
    print("source  " + ", ".join(f"{name} {value}" for name, value in source.items()))
    print("rule    " + ", ".join(f"{name} {value}" for name, value in rule.items()))
    for kind in ("heads", "neurons"):
        print(f"{kind:<8}pruned {ticket.realised[kind]:,} (asked for {ticket.requested[kind]:,})")
    for each in ticket.wider:
        counts = f"{sum(map(len, each.heads)):,} heads, {sum(map(len, each.neurons)):,} neurons"
        print(f"wider   {counts} (pruned shares {each.head_ratio:g} and {each.neuron_ratio:g})")
    for layer, (heads, neurons) in enumerate(zip(ticket.heads, ticket.neurons, strict=True)):
        print(f"layer {layer:>2}  {len(neurons):>5} neurons, heads {' '.join(map(str, heads))}")
    print(f"sha256  {ticket.sha256}")


def _compare(arguments: Namespace, _: list[str]) -> None:
    first, second = Ticket.load(arguments.first), Ticket.load(arguments.second)
    second.require_model(first.model, str(arguments.second))
    first_masks, second_masks = masks(first), masks(second)
    for kind in ("heads", "neurons"):
        pair = first_masks[kind], second_masks[kind]
        shares = [1 - mask.mean() for mask in pair]
        chance = shares[0] * (1 - shares[1]) + shares[1] * (1 - shares[0])
        print(f"{kind:<8} mask distance {mask_distance(*pair):.4f} (two random masks: {chance:.4f})")
        print("         by layer " + " ".join(f"{mask_distance(a, b):.3f}" for a, b in zip(*pair, strict=True)))


def _draw(arguments: Namespace, _: list[str]) -> None:
    recipe = load_recipe(run_config_path(arguments.run_dir), [])
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(TicketRule)}
    how = dataclasses.replace(recipe.draw, **{name: value for name, value in given.items() if value is not None})
    recipe = dataclasses.replace(recipe, draw=how)
    check_recipe(recipe)
    plan, folder = ticket_plan(recipe), arguments.run_dir / "search"
    ticket = draw_from_snapshot(
        folder, arguments.step, plan.ticket_shape, how, recipe.seed, wider=plan.wider_tickets(how)
    )
    _write(ticket, arguments.out)


def _recipe(arguments: Namespace, overrides: list[str]) -> Recipe:
    if arguments.config is None:
        raise UserError("--config is missing; it must name the recipe whose model the ticket is for")
    recipe = recipe_to_begin(recipe_path(arguments.config), overrides, arguments.parser)
    check_recipe(recipe)
    return recipe


def _random(arguments: Namespace, overrides: list[str]) -> None:
    if arguments.like and arguments.config:
        raise UserError("--like has all that --config would say; leave one of them out")
    if arguments.like:
        ticket = random_ticket_like(Ticket.load(arguments.like), arguments.seed)
    else:
        plan = ticket_plan(_recipe(arguments, overrides))
        rule = plan.recipe.draw.rule
        ticket = random_ticket(plan.ticket_shape, rule, arguments.seed, plan.wider_tickets(rule))
    _write(ticket, arguments.out)


def _all(arguments: Namespace, overrides: list[str]) -> None:
    _write(all_ticket(ticket_plan(_recipe(arguments, overrides)).ticket_shape), arguments.out)


def _write(ticket: Ticket, out: Path) -> None:
    ticket.save(out)
    print_ticket(ticket)
    print(f"written to {out}")
