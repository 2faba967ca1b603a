"""What was recorded of routing, while it happens and on disk."""
