"""Search, ticket, surgery and the training loop."""
