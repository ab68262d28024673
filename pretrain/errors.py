"""The one exception for what a user can put right: its text is one sentence, shown without a traceback."""


class UserError(ValueError):
    """Names the field or file, its value and what would be right. Ends the program with exit status 2."""
