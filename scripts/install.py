"""Makes `.venv` hold what a lock names: `python3 scripts/install.py [cpu|gpu|gateway|dev]`.

Only the check of the interpreter is here, in words that a Python too old for the rest can still read.
"""

import os
import sys

if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - this is how somebody with an older one learns of it
        found = ".".join(str(number) for number in sys.version_info[:2])
        sys.stderr.write("install: Python " + found + " is too old; 3.11 to 3.14 is needed\n")
        sys.stderr.write("remedy: install one of those, or name one that is there: make PYTHON=python3.12 ...\n")
        sys.exit(1)
    # Run as a file, Python looks for modules beside it; ours are named from the top of the checkout.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    from scripts.setting_up import main

    sys.exit(main(sys.argv[1:]))
