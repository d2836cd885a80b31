"""`python -m hpo_core.sidecar`: wait for the end of the trainer, then do what the order says."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Do the errand; returns 0 once the end marker is in the store."""
    # The first process of a container never sees a signal that it does not expect, so an early one has to be kept
    # before anything that takes time.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    from hpo_core.sidecar.program import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
