"""Samples of tokens, their shards and their order; masking."""
