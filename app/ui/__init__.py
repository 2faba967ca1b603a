"""The page: layout, chat, panels, and the words in them."""
