"""Sentences, tokenizers, tokenised text."""
