"""Fine-tuning on GLUE and SQuAD v1.1: dense, with an early ticket, and the baselines it is compared with."""
