"""Sizes that kernels work in and cost models reckon with, and what checkpoints call moments; all without PyTorch."""

# The state of Adam-like optimizers beside their step count, each like the parameter. Muon's matrices have the first.
MOMENTS = ("exp_avg", "exp_avg_sq")

# Rows of fp16 matrices of any other width are not aligned for tensor cores and 128-bit accesses.
STORED_MULTIPLE = 64
# fp32 logits of one chunk of predictions. On a CPU few enough to stay cheap, enough rows to keep a matrix product busy;
# on a GPU, which waits for every launch, as many as a large micro-batch has (4,396 for BERT's vocabulary).
CPU_CHUNK_BYTES, GPU_CHUNK_BYTES = 1 << 26, 1 << 29
# Elements that a CPU keeps in the cache of one core.
CPU_BLOCK = 1 << 18
# Of Muon, for each matrix and step.
NEWTON_SCHULZ_STEPS = 5
