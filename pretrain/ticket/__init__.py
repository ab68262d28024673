"""Tickets: which heads and neurons stay, how they are drawn, and the search's recordings."""
