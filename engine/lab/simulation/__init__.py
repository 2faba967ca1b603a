"""Recorded routing through the engine's own cache on a virtual clock."""
