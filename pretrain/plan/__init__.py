"""The plan: recipes, stages, and what happens between them."""
