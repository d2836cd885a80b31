"""The only loop and the only clock of decisions: from events to records to new trials, and the retraining.

A turn takes all events that are there, records the trials that ended, asks for as many, records them as created and
only then submits them. So a process that is killed at any instant loses no trial and starts none twice: what is
recorded and not running is submitted again under the same name, which a launcher takes as the same workload.
"""

from hpo_core.loop.clock import Clock, SystemClock
from hpo_core.loop.patience import Patience
from hpo_core.loop.retraining import RECORD, RETRAIN, Retraining, retrain
from hpo_core.loop.run import INBOX_S, Left, Run, run
from hpo_core.loop.snapshot import Followed, Snapshot
from hpo_core.loop.workload import make_job

__all__ = [
    "INBOX_S",
    "RECORD",
    "RETRAIN",
    "Clock",
    "Followed",
    "Left",
    "Patience",
    "Retraining",
    "Run",
    "Snapshot",
    "SystemClock",
    "make_job",
    "retrain",
    "run",
]
