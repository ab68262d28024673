"""The `earlybert` command: one subcommand for each thing that one does."""

import importlib
import importlib.metadata
import os
import select
import signal
import sys
import time
from types import FrameType

from earlybert.core.arguments import alternatives
from earlybert.core.errors import UserError

# A command's `main` gets the arguments after its name. Imported when called: none waits for what another one needs.
COMMANDS = {
    "train": ("earlybert.pretrain.commands.train", "pre-train: search, draw a ticket, train narrow; or resume"),
    "prepare": ("earlybert.data_prep.commands.prepare", "make sample shards from text"),
    "plan": (
        "earlybert.pretrain.commands.plan",
        "print the stages and their cost; on a cluster also memory, time and disk",
    ),
    "ticket": ("earlybert.pretrain.commands.ticket", "show, compare or draw tickets, or make random ones"),
    "checkpoint": ("earlybert.pretrain.commands.checkpoint", "list or verify the checkpoints of a run"),
    "report": (
        "earlybert.pretrain.commands.report",
        "write report and pictures of one run, or of several in comparison",
    ),
    "export": ("earlybert.pretrain.commands.export", "write a run's network for Hugging Face transformers"),
    "fill-mask": ("earlybert.pretrain.commands.fill_mask", "fill in hidden words with a run's export, in transformers"),
    "finetune": (
        "earlybert.finetune.command",
        "fine-tune and score on GLUE, SQuAD or your own files, dense or narrow",
    ),
}

# As shells report a program that Ctrl-C ended, and one whose output nobody reads any more.
INTERRUPTED = 128 + signal.SIGINT
UNREAD = 128 + signal.SIGPIPE


def main(argv: list[str] | None = None) -> None:
    """Entry of the console command: exit status 2 and one sentence for what a user can put right, 130 after Ctrl-C.

    Args:
        argv: The command's name and its arguments; without them those of the process.
    """
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    signal.signal(signal.SIGINT, interrupt)
    try:
        try:
            carry_out(name, arguments)
        finally:
            print(end="", flush=True)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("earlybert: stopped; what is finished stays: run the same command again to resume", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError) and is_unread():
            # Python writes what is left when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(UNREAD)
        # What is wrong with the input is wrong on all ranks: rank 0 says it, the others give it the time to.
        if os.environ.get("RANK", "0") != "0":
            time.sleep(3)
        print(f"earlybert: error: {sentence(error)}", file=sys.stderr, flush=True)
        sys.exit(2)


def carry_out(name: str, arguments: list[str]) -> None:
    """A command, or what stands in the place of its name."""
    if name in ("-h", "--help"):
        print_help()
    elif name == "--version":
        print(f"earlybert {importlib.metadata.version('earlybert')}")
    else:
        importlib.import_module(module_of(name)).main(arguments)


def interrupt(number: int, _frame: FrameType | None) -> None:
    """What a first Ctrl-C does: work is left in good order. A second one ends the process at once."""
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt


def is_unread() -> bool:
    """Whether it is the output that is closed: whoever read it, `head` perhaps, has enough."""
    if sys.stdout is None:  # there was none from the beginning
        return False
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def sentence(error: Exception) -> str:
    """What an error says of itself; of the system's own without its number."""
    if isinstance(error, OSError) and not isinstance(error, UserError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def module_of(command: str) -> str:
    """Name of the module with the command's `main`; raises UserError."""
    if command not in COMMANDS:
        raise UserError(f"unknown command {command!r}{alternatives(command, [*COMMANDS, '--help', '--version'])}")
    return COMMANDS[command][0]


def print_help() -> None:
    print("usage: earlybert COMMAND [ARGUMENTS]    (earlybert COMMAND --help says more, earlybert --version which)\n")
    for name, (_, purpose) in COMMANDS.items():
        print(f"  {name:<12}{purpose}")
    print("\nOptions may be written with dashes or underscores. Training on several GPUs or nodes:")
    print("  torchrun --nproc_per_node 8 -m earlybert.pretrain.run [ARGUMENTS OF train]")
    print("  deepspeed --module earlybert.pretrain.run [ARGUMENTS OF train]")
