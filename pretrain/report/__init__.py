"""What came out of a run: outcome, timeline, page and pictures."""
