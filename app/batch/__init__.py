"""A file of prompts, answered several at once."""
