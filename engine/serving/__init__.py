"""Many callers, one model: requests wait in a fair queue and are decoded together by a thread of the engine."""
