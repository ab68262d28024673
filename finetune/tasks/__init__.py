"""What is fine-tuned for: GLUE's tasks, SQuAD, and the registry of them."""
