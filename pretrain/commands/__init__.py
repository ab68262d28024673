"""The subcommands of `earlybert` about runs."""
