"""Where a run's curves go beside metrics.jsonl: TensorBoard, Weights & Biases, Trackio."""
