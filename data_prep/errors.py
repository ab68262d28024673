"""The one exception of this package."""


class CorpusError(ValueError):
    """Text, tokenizer, configuration or corpus directory that cannot be used.

    The message is one sentence that names the field or the file (and line), the value found and what would be right.
    """
