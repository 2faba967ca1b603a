"""Start ExpertFlow Desktop: `python3 launch.py`, or run its tests: `python3 launch.py test`.

This file must parse on old Pythons too (3.6), so that they are answered with a sentence.
"""

import os
import shutil
import sys

OLDEST, NEWEST = (3, 11), (3, 13)


def python_refusal(version, is_64_bit, find_program=shutil.which):
    """Say why this Python cannot run the program, and which can; None if it can."""
    if OLDEST <= tuple(version[:2]) <= NEWEST and is_64_bit:
        return None
    this = f"{'64' if is_64_bit else '32'}-bit Python {version[0]}.{version[1]}"
    sentence = f"ExpertFlow Desktop needs 64-bit Python 3.11, 3.12 or 3.13; this is {this}"
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        if is_64_bit and find_program(f"python3.{minor}"):
            return f"{sentence}: start it with `python3.{minor} launch.py`."
    return sentence + ": install one of them from your system's packages or from python.org."


def main():
    refusal = python_refusal(sys.version_info, sys.maxsize > 2**32)
    if refusal:
        sys.exit(refusal)
    root = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, root)
    from launcher.start import start

    sys.exit(start(root, sys.argv[1:]))


if __name__ == "__main__":
    main()
