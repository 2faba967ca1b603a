"""A file of prompts answered by several engines, on this machine and others, with Ray Data."""
