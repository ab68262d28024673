"""The `earlybert` command: one subcommand per thing one does beside training."""

import importlib
import sys

from earlybert.core.errors import UserError

# Imported when called, so that `earlybert --help` does not wait for torch.
COMMANDS = {
    "prepare": ("earlybert.data_prep.prepare", "make sample shards from text"),
    "plan": (
        "earlybert.pretrain.commands.plan",
        "print the stages and their cost; on a cluster also memory, time and disk",
    ),
    "ticket": ("earlybert.pretrain.commands.ticket", "show, compare or draw tickets, or make random ones"),
    "checkpoint": ("earlybert.pretrain.commands.checkpoint", "list or verify the checkpoints of a run"),
    "report": ("earlybert.pretrain.report.report", "write report and pictures of one run, or of several side by side"),
    "export": ("earlybert.pretrain.checkpoint.export", "write a run's network for Hugging Face transformers"),
    "finetune": ("earlybert.finetune.command", "fine-tune and score on GLUE and SQuAD, dense or with an early ticket"),
}


def main() -> None:
    """Entry of the console command: exit status 2 and one sentence for what a user can put right."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: earlybert COMMAND [ARGUMENTS]    (earlybert COMMAND --help says more)\n")
        for name, (_, purpose) in COMMANDS.items():
            print(f"  {name:<12}{purpose}")
        print("\nTraining itself is pretrain/run.py, under deepspeed, torchrun, srun or plain python.")
        return
    try:
        if arguments[0] not in COMMANDS:
            raise UserError(f"unknown command {arguments[0]!r}; it must be one of {', '.join(COMMANDS)}")
        module = COMMANDS[arguments[0]][0]
        if not module.startswith("earlybert.data_prep"):
            # Before DeepSpeed: it says which accelerator there is.
            importlib.import_module("earlybert.core.distributed")
        importlib.import_module(module).main(arguments[1:])
    except (UserError, OSError) as error:
        print(f"earlybert: error: {error}", file=sys.stderr)
        sys.exit(2)
