"""What happens between two stages: a file each, registered by its line in the recipe."""
