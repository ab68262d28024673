"""Fast operations, each with a plain PyTorch reference beside it. Knows nothing of BERT or of training runs."""
