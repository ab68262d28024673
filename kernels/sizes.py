"""Sizes that kernels work in and cost models reckon with. Apart from the kernels, because a model needs no PyTorch."""

# Rows of fp16 matrices of any other width are not aligned for tensor cores and 128-bit accesses.
STORED_MULTIPLE = 64
# fp32 logits of one chunk of predictions. On a CPU few enough to stay cheap, enough rows to keep a matrix product busy;
# on a GPU, which waits for every launch, as many as a large micro-batch has (4,396 for BERT's vocabulary).
CPU_CHUNK_BYTES, GPU_CHUNK_BYTES = 1 << 26, 1 << 29
# Of Muon, for each matrix and step.
NEWTON_SCHULZ_STEPS = 5
