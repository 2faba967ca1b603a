"""Which waiting tokens are read in one pass: grouped so that a pass needs few experts that are not there."""
