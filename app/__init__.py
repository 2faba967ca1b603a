"""What a person sees: the chat page, the chat store, the settings and the command line."""
