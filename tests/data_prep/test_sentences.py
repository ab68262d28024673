"""Documents to sentences."""

import time

import pytest
import sentencex

from earlybert.data_prep.tokens.sentences import split_sentences

CHINESE = "我们今天去公园{}。他说：“好吧！我去。”然后走了？（真的。好的。）他们走了！"
JAPANESE = "今日は公園に{}回行きます。「はい。そうです。」と言った。『本』を読む！"


@pytest.mark.parametrize(
    ("text", "language"),
    [(CHINESE, "zh"), (JAPANESE, "ja"), (CHINESE, "en")],
    ids=["Chinese", "Japanese", "as English"],
)
def test_a_long_paragraph_without_spaces_has_the_sentences_of_its_whole(text: str, language: str) -> None:
    paragraph = "".join(text.format(number) for number in range(400))
    assert len(paragraph) > 10_000
    assert split_sentences(paragraph, language) == list(sentencex.segment(language, paragraph))


@pytest.mark.parametrize("text", [CHINESE, "“" + CHINESE], ids=["quotes closed", "quotes left open"])
def test_a_long_paragraph_without_spaces_takes_time_in_proportion(text: str) -> None:
    def seconds(repeats: int) -> float:
        paragraph = "".join(text.format(number) for number in range(repeats))
        start = time.process_time()
        split_sentences(paragraph, "zh")
        return time.process_time() - start

    assert seconds(3200) < 6 * seconds(800)


def test_other_paragraphs_stay_whole() -> None:
    words = "He said (and nobody answered him. Nobody?) that he would leave. " * 400
    assert split_sentences(words) == [sentence.strip() for sentence in sentencex.segment("en", words.strip())]
