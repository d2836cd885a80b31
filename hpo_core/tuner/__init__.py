"""A tuner of an experiment, here or in the background: start it, wait for it, ask it for something.

Components and the command line call this. It puts the parts together: a store's address becomes records, a lease,
scratch space and a launcher.
"""

from hpo_core.tuner.background import launch
from hpo_core.tuner.foreground import await_lease, clear, delete, retrain, run, run_experiment
from hpo_core.tuner.interruption import Interruption
from hpo_core.tuner.observing import edit, request_stop, stop_trial, wait, wait_for_stop
from hpo_core.tuner.own_pod import pod_like_own
from hpo_core.tuner.place import OURS_IN_POD, Handle, Place

__all__ = [
    "OURS_IN_POD",
    "Handle",
    "Interruption",
    "Place",
    "await_lease",
    "clear",
    "delete",
    "edit",
    "launch",
    "pod_like_own",
    "request_stop",
    "retrain",
    "run",
    "run_experiment",
    "stop_trial",
    "wait",
    "wait_for_stop",
]
