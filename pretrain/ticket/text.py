"""A ticket as text."""

from earlybert.core.text import markdown_table
from earlybert.pretrain.ticket.ticket import Ticket


def ticket_markdown(ticket: Ticket) -> str:
    """What the ticket keeps, layer by layer, and where it came from."""
    model, source = ticket.model, ticket.source
    origin = {
        "search": f"drawn by {source.ranking or 'coefficient'} after {source.step} steps of the {source.stage}",
        "random": f"drawn by chance (seed {source.seed})",
        "all": "everything is kept",
    }[source.kind]
    rows = [
        (str(layer), f"{len(heads)} of {model.num_heads}", ", ".join(map(str, heads)), f"{len(neurons):,}")
        for layer, (heads, neurons) in enumerate(zip(ticket.heads, ticket.neurons, strict=True))
    ]
    pruned = " and ".join(
        f"{ticket.realised[units]:,} {units} (asked for {ticket.requested[units]:,})" for units in ticket.realised
    )
    table = markdown_table(("layer", "heads", "which", f"neurons of {model.intermediate_size:,}"), rows)
    return f"Ticket `{ticket.sha256[:12]}`, {origin}; it cuts {pruned}.\n\n{table}"
