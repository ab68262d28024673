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
    config = run_config_path(arguments.run_dir)
    exported = arguments.run_dir / "export" / "bert"
    if not (exported / "config.json").is_file():
        command = shlex.join(["earlybert", "export", str(arguments.run_dir), "--out", str(exported)])
        raise UserError(f"{exported}: is no export; make it with {command}")
    recipe = load_recipe(config, [])
    if recipe.losses and "masked" not in recipe.losses:
        raise UserError(
            f"{arguments.run_dir}: was trained with the losses {recipe.losses}, so it has no head that fills in words; "
            "it must be a run whose losses have 'masked'"
        )

    # They import PyTorch and transformers, which --help should not wait for.
    from transformers import pipeline
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from earlybert.core import devices  # noqa: F401
    from earlybert.pretrain.plan.corpora import run_samples
    from earlybert.pretrain.report.hidden_words import LONGEST, SHORTEST, Riddle, guesses, held_out_riddles

    disable_progress_bar()
    set_verbosity_error()  # it would report the heads of the export that this does not need
    fill_mask = pipeline("fill-mask", model=str(exported))
    tokenizer, most = fill_mask.tokenizer, fill_mask.model.config.max_position_embeddings
    assert tokenizer is not None
    mask = str(tokenizer.mask_token)
    for sentence in arguments.sentences:
        if sentence.count(mask) != 1:
            raise UserError(f"sentence {sentence!r} has {sentence.count(mask)} {mask}; it must have one")
        if (tokens := len(tokenizer(sentence)["input_ids"])) > most:
            raise UserError(f"sentence {sentence[:40]!r}... has {tokens} tokens; it must have at most {most}")
    riddles = [Riddle(sentence, "") for sentence in arguments.sentences]
    if not riddles:
        riddles = held_out_riddles(run_samples(arguments.run_dir, recipe), SENTENCES, recipe.seed)
        if riddles:
            print(f"Words hidden in sentences that the network has not seen, found by transformers from {exported}:")
        else:
            words = f"{SHORTEST} to {LONGEST} words"
            print(f"No sentence of {words} to hide one of in the held-out text; give your own, each with one {mask}")
    for riddle in riddles:
        found = "  ".join(f"{word} {share:.0%}" for word, share in guesses(fill_mask, riddle.sentence))
        print(f"\n  {riddle.sentence}\n      guesses: {found}{f'    hidden: {riddle.word}' if riddle.word else ''}")
