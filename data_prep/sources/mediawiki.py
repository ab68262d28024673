"""Dumps of Wikipedia and its sisters: MediaWiki's XML export, plain or packed, whole, in parts or multistream.

A multistream dump is many bz2 streams of a hundred pages one after the other; its index says where each begins, so
stretches of it are unpacked apart. A plain dump is cut at its pages. Other packed files are read by one worker each.
"""

import re
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import BinaryIO, cast
from xml.etree import ElementTree

from earlybert.core.errors import UserError
from earlybert.data_prep.cleaning.counts import Counts
from earlybert.data_prep.sources import wikitext
from earlybert.data_prep.sources.input_files import (
    UNPACKED,
    UNPACKING_ERRORS,
    file_fragments,
    find_files,
    open_file,
)
from earlybert.data_prep.sources.namespaces import FILES_AND_CATEGORIES
from earlybert.data_prep.sources.source import Fragment, InputPath, Source, SourceConfig
from earlybert.data_prep.sources.streams import OPENERS

CHUNK = 1 << 16
PAGE = b"<page>"
# Media, files and categories; their names differ from language to language.
DROPPED_NAMESPACES = ("-2", "6", "14")
_NAMESPACE = re.compile(rb'<namespace key="(-?\d+)"[^>]*>([^<]+)</namespace>')
_DISAMBIGUATION = re.compile(
    r"\{\{\s*+(?:[\w ()-]*\bdisambig(?:uation)?(?: page)?|dab|disamb|hndis|geodis|numberdis|mathdab|begriffsklärung"
    r"|homonymie|desambigua(?:ción|ção)|disambigua|ujednoznacznienie|неоднозначность|багатозначність|dp|förgrening"
    r"|flertydig|rozcestník|egyért|anlam ayrımı|曖昧さ回避|消歧义|消歧義)\s*(?:\||\}\})",
    re.IGNORECASE,
)


class MediaWiki(Source):
    """An article is a document; redirects, disambiguations and pages about the wiki itself are none."""

    name = "mediawiki"
    meaning = (
        "dumps of Wikipedia and its sisters, .xml (pages-articles, whole or in parts; parts of a multistream dump are "
        "read in parallel when the index lies beside it under its original name)"
    )
    needs = "files"

    def fragments(self, config: SourceConfig) -> list[Fragment]:
        """All files of the source, sorted, in fragments."""
        fragments: list[Fragment] = []
        for file in find_files(config.files, (".xml",)):
            index = _index_file(file)
            fragments += _stream_fragments(file, index) if index else file_fragments(file)
        return fragments

    def read(self, fragment: Fragment, config: SourceConfig, counts: Counts) -> Iterator[str]:
        """The articles in a fragment as prose."""
        return read_articles(fragment, counts)


def _index_file(file: InputPath) -> InputPath | None:
    """Beside `x-multistream1.xml-p1p9.bz2` lies `x-multistream-index1.txt-p1p9.bz2`, unpacked perhaps."""
    if file.suffix != ".bz2" or "multistream" not in file.name:
        return None
    name = file.name.replace("multistream", "multistream-index").replace(".xml", ".txt")
    candidates = (file.with_name(name), file.with_name(name.removesuffix(".bz2")))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _stream_fragments(file: InputPath, index: InputPath) -> list[Fragment]:
    """One fragment for each stream; what stands before the first (the head of the XML) makes one too."""
    size, modified = file.stat().st_size, file.stat().st_mtime_ns
    starts = [0]
    number = 0
    try:
        with open_file(index) as lines:
            for line in lines:
                number += 1
                start = int(line.partition(b":")[0])
                if not starts[-1] <= start < size:
                    raise ValueError(f"{start} does not follow {starts[-1]} inside the dump's {size} bytes")
                if start > starts[-1]:
                    starts.append(start)
    except UNPACKING_ERRORS as error:
        raise UserError(f"{index} cannot be read ({error}).") from error
    except ValueError as error:
        raise UserError(f"{index}:{number} is not an index of {file} ({error}).") from None
    ends = [*starts[1:], size]
    return [
        Fragment(file, (end - start) * UNPACKED, start, end, modified) for start, end in zip(starts, ends, strict=True)
    ]


def read_articles(fragment: Fragment, counts: Counts) -> Iterator[str]:
    """The articles in a fragment as prose: no redirects, disambiguations, nor pages about the wiki itself.

    Raises:
        UserError: The file cannot be unpacked or is no dump; the message names the place.
    """
    for title, text in read_pages(fragment, counts):
        if title.lower().endswith("(disambiguation)") or _DISAMBIGUATION.search(text):
            counts.drop("page: disambiguation", title)
        else:
            assert fragment.path
            broken = partial(counts.drop, "paragraph: markup")
            yield "\n".join(wikitext.prose(text, _dropped_namespaces(fragment.path), broken))


def read_pages(fragment: Fragment, counts: Counts) -> Iterator[tuple[str, str]]:
    """Title and wikitext of the articles in a fragment, redirects left out."""
    named = f"{fragment.path}" + (f" (from byte {fragment.start} on)" if fragment.start else "")
    title = None
    try:
        for page in _page_elements(fragment):
            title = page.findtext("{*}title", "")
            text = page.findtext("{*}revision/{*}text") or ""
            model = page.findtext("{*}revision/{*}model", "wikitext")
            if _namespace(page, title, fragment) != "0" or model != "wikitext":
                counts.drop("page: no article", title)
            elif page.find("{*}redirect") is not None or text[:9].upper() == "#REDIRECT":
                counts.drop("page: redirect", title)
            else:
                yield title, text
    except ElementTree.ParseError as error:
        line, column = error.position
        after = f"after the page {title!r}" if title else "before any page"
        reason = str(error).partition(":")[0]
        raise UserError(f"{named} is broken XML at line {line}, column {column}, {after} ({reason}).") from None
    except (*UNPACKING_ERRORS, LookupError) as error:  # LookupError: the XML declares an encoding that there is not
        after = f"after the page {title!r}" if title else "before any page"
        raise UserError(f"{named} cannot be read {after} ({error}).") from error


def _namespace(page: ElementTree.Element, title: str, fragment: Fragment) -> str:
    """The page's own statement; old dumps have none, there the title's prefix says it."""
    if (stated := page.findtext("{*}ns")) is not None:
        return stated
    assert fragment.path
    prefix, colon, _ = title.partition(":")
    return _namespaces(fragment.path).get(prefix.strip().lower(), "0") if colon else "0"


def _page_elements(fragment: Fragment) -> Iterator[ElementTree.Element]:
    """The `<page>` elements of a fragment; each is emptied when the next is asked for."""
    parser: ElementTree.XMLPullParser[ElementTree.Element] = ElementTree.XMLPullParser(("start", "end"))
    root: ElementTree.Element | None = None
    page: ElementTree.Element | None = None
    for chunk in _xml(fragment):
        parser.feed(chunk)
        for event, element in cast("Iterator[tuple[str, ElementTree.Element]]", parser.read_events()):
            if root is None:
                root = element
                if _local_name(root) != "mediawiki":
                    raise UserError(f"{fragment.path} is no MediaWiki dump: its root element is <{_local_name(root)}>.")
            elif _local_name(element) == "page":
                page = element
                if event == "end":
                    yield element
                    root.clear()
            elif event == "end" and page is not None and _local_name(element) == "revision":
                _keep_newest_revision(page)
    parser.close()


def _keep_newest_revision(page: ElementTree.Element) -> None:
    """A dump with the history has thousands of a page, mostly oldest first."""
    revisions = page.findall("{*}revision")
    newest = max(revisions, key=lambda revision: revision.findtext("{*}timestamp") or "")
    for revision in revisions:
        if revision is not newest:
            page.remove(revision)


def _local_name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _xml(fragment: Fragment) -> Iterator[bytes]:
    """A fragment as a whole XML document: a stretch from the middle gets a head and an end."""
    assert fragment.path
    size = fragment.path.stat().st_size
    with fragment.path.open("rb") as file:
        if fragment.path.suffix in OPENERS:
            begin, stop = fragment.start, size if fragment.end is None else fragment.end
        else:
            begin = _next_page(file, fragment.start) if fragment.start else 0
            stop = size if fragment.end is None else _next_page(file, fragment.end)
        if begin:
            yield b"<mediawiki>"
        file.seek(begin)
        stretch = _Stretch(file, stop - begin)
        stream = OPENERS[fragment.path.suffix](stretch) if fragment.path.suffix in OPENERS else stretch
        while chunk := stream.read(CHUNK):
            yield chunk
        if stop < size or 0 < begin == size:
            yield b"</mediawiki>"


class _Stretch:
    """The next `size` bytes of a file, as a file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data


def _next_page(file: BinaryIO, start: int) -> int:
    """Where the next `<page>` begins at or after `start`; the file's size when there is none.

    Text never holds these bytes: XML writes its `<` as `&lt;`.
    """
    file.seek(start)
    tail = b""
    while chunk := file.read(CHUNK):
        if (offset := (tail + chunk).find(PAGE)) >= 0:
            return start - len(tail) + offset
        start += len(chunk)
        tail = chunk[1 - len(PAGE) :]
    return start


def _dropped_namespaces(file: InputPath) -> frozenset[str]:
    """Lowercase prefixes of files and categories: the large wikis' names, and this wiki's own."""
    return FILES_AND_CATEGORIES | {name for name, key in _namespaces(file).items() if key in DROPPED_NAMESPACES}


@lru_cache
def _namespaces(file: InputPath) -> dict[str, str]:
    """Number of each namespace by its lowercase name, from the head of the dump."""
    try:
        with open_file(file) as stream:
            head = b""
            # No further than need be: what follows may be damaged, which is for its own readers to say.
            while len(head) < CHUNK and b"</namespaces>" not in head and (line := stream.readline(CHUNK)):
                head += line
            named = _NAMESPACE.findall(head)
    except UNPACKING_ERRORS as error:
        raise UserError(f"{file}: its head, which names the wiki's namespaces, cannot be read ({error}).") from error
    return {name.decode().lower(): key.decode() for key, name in named}
