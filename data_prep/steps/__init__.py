"""The restartable steps from text to corpus."""
