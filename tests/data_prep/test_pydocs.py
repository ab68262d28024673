"""What counts as prose in documentation."""

import pytest

from earlybert.data_prep.sources.pydocs import docstrings, is_prose, paragraphs

MODULE = '''#!/usr/bin/env python
"""Module text."""
VALUE = """not a docstring
"""

class A:
    r"""Class text.

        Indented.
    Last.
    """
    def f(self):
        \'\'\'Function text.\'\'\'
        return call("""no""")
'''

DOCSTRING = """Return the sum of all the things that were given to this function.

The paragraph with ``code``, a :class:`~package.module.Name`, *emphasis* and a `link <http://x.org>`_
goes on over two lines of text.  It ends here::

    this_is = code(that, must, not, stay, here, at, all, ever)

    more_code = there(is, more, code, after, the, blank, line)

>>> an_example(of, an, interactive, session, with, words)
'the result of this example is printed here in words.'

Args:
    first_value (int): The first of the values that are added up by this function.
        It must not be negative, or nothing good will come of it.
    second: Short.

- The first item of a list that is long enough to stay here.
- The second item of a list that is long enough to stay here.

=====  =====
table  value
=====  =====

```
Some fenced code in which all words would look like prose to a machine.
```
"""


def test_docstrings_are_the_strings_that_begin_a_line() -> None:
    assert list(docstrings(MODULE)) == ["Module text.", "Class text.\n\n    Indented.\nLast.", "Function text."]


def test_prose_stays_and_code_goes() -> None:
    assert list(paragraphs(DOCSTRING)) == [
        "Return the sum of all the things that were given to this function.",
        "The paragraph with code, a Name, emphasis and a link goes on over two lines of text. It ends here:",
        "The first of the values that are added up by this function. "
        "It must not be negative, or nothing good will come of it.",
        "The first item of a list that is long enough to stay here.",
        "The second item of a list that is long enough to stay here.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Too short to stay.",
        "no capital letter at the beginning of this otherwise fine sentence.",
        "There is no full stop at the end of this sentence",
        "If x_1 = y_2 and f(x) = [1, 2, 3] then a[i] = {b: c} | {d: e}.",
    ],
)
def test_what_is_no_prose(text: str) -> None:
    assert not is_prose(text)
