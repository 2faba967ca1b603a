"""Groupings of several conversations' tokens on recorded routing: distinct experts and bytes moved."""
