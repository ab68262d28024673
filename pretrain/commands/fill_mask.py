"""`earlybert fill-mask RUN`: what a run's exported network makes of hidden words."""

import shlex
from pathlib import Path

from earlybert.core.arguments import ArgumentParser
from earlybert.core.errors import UserError
from earlybert.pretrain.plan.recipe import load_recipe, run_config_path

SENTENCES = 3


def main(argv: list[str]) -> None:
    """Fills in hidden words with a run's plain BERT export, in plain transformers."""
    parser = ArgumentParser("earlybert fill-mask", description=main.__doc__)
    parser.add_argument("run_dir", type=Path, help="a run that has exported a plain BERT (export/bert)")
    parser.add_argument(
        "sentences",
        nargs="*",
        default=[],
        help="each with one [MASK]; default: sentences of the held-out text with a word hidden",
    )
    arguments = parser.parse_args(argv)
    run_config_path(arguments.run_dir)
    exported = arguments.run_dir / "export" / "bert"
    if not (exported / "config.json").is_file():
        command = shlex.join(["earlybert", "export", str(arguments.run_dir), "--out", str(exported)])
        raise UserError(f"{exported}: is no export; make it with {command}")

    # They import PyTorch and transformers, which --help should not wait for.
    from transformers import pipeline
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from earlybert.core import devices  # noqa: F401
    from earlybert.data_prep.samples.corpus import Corpus
    from earlybert.pretrain.plan.corpora import corpus_directory
    from earlybert.pretrain.report.hidden_words import Riddle, guesses, held_out_riddles

    disable_progress_bar()
    set_verbosity_error()  # it would report the heads of the export that this does not need
    fill_mask = pipeline("fill-mask", model=str(exported))
    assert fill_mask.tokenizer is not None
    mask = str(fill_mask.tokenizer.mask_token)
    for sentence in arguments.sentences:
        if sentence.count(mask) != 1:
            raise UserError(f"sentence {sentence!r} has {sentence.count(mask)} {mask}; it must have one")
    riddles = [Riddle(sentence, "") for sentence in arguments.sentences]
    if not riddles:
        recipe = load_recipe(run_config_path(arguments.run_dir), [])
        riddles = held_out_riddles(Corpus.open(corpus_directory(recipe)), SENTENCES, recipe.seed)
        print(f"Words hidden in sentences that the network has not seen, found by transformers from {exported}:")
    for riddle in riddles:
        found = "  ".join(f"{word} {share:.0%}" for word, share in guesses(fill_mask, riddle.sentence))
        print(f"\n  {riddle.sentence}\n      guesses: {found}{f'    hidden: {riddle.word}' if riddle.word else ''}")
