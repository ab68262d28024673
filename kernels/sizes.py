"""Sizes that kernels work in and cost models reckon with. Apart from the kernels, because a model needs no PyTorch."""

# Rows of fp16 matrices of any other width are not aligned for tensor cores and 128-bit accesses.
STORED_MULTIPLE = 64
# fp32 logits of one chunk: few enough to stay cheap, enough rows to keep a matrix product busy.
CHUNK_BYTES = 1 << 26
