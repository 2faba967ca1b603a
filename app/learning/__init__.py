"""Learning from the person's own chats, in a process of its own, while nothing is asked."""
