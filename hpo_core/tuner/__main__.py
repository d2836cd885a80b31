"""`python -m hpo_core.tuner`: the background tuner."""

import sys

from hpo_core.tuner.background import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
