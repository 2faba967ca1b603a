"""From a bare Python to a running program. Standard library only: nothing else is installed yet."""


class SetupProblem(Exception):
    """What stands in the way of starting, in one sentence that also names the way out."""
