"""What is dropped from the text, and what of that is counted."""
