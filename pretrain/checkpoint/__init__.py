"""Canonical checkpoints, and exports of what they hold."""
