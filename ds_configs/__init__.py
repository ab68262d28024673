"""DeepSpeed configuration files."""
