"""`earlybert prepare` and its commands."""
