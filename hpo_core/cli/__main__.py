"""`python -m hpo_core.cli` is `hpo`."""

import sys

from hpo_core.cli import main

sys.exit(main())
