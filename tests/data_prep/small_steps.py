"""`earlybert prepare` with units, blocks and shards so small that a little text has many of each.

Sizes are decided in the first process, so the workers need no change.
"""

import sys

from earlybert.core import cli
from earlybert.data_prep.steps import preparation, reading
from earlybert.data_prep.tokens import text


def make_steps_small() -> None:
    reading.SMALLEST_UNIT = 4_000
    text.TOKENS_PER_BLOCK = 3_000
    preparation.TOKENS_PER_SHARD = 4_000


if __name__ == "__main__":
    make_steps_small()
    cli.main(["prepare", *sys.argv[1:]])
