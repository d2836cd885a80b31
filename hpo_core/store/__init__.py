"""The records of one experiment: their keys, their JSON, the lease of the one writer and the inbox of everybody else.

<namespace>/<name>/experiment.yaml        as accepted, with its uid
<namespace>/<name>/trials/00001.json      one object per trial, the truth
<namespace>/<name>/metrics/00001.jsonl    its metric points
<namespace>/<name>/logs/00001.log         head and tail of what it printed
<namespace>/<name>/models/00001/…         what it left in its output directory
<namespace>/<name>/models/00001-2/…       the same of its second attempt, by a sidecar; `retrain-2/…` of a retraining
<namespace>/<name>/uploads/<attempt>.json the sidecar's receipt: that it has kept all, or why not
<namespace>/<name>/requests/<ulid>.json   what others ask of the writer
<namespace>/<name>/requests/refused/…     why one of them was not fulfilled, until whoever sent it has read that
<namespace>/<name>/lease                  who the writer is
<namespace>/<name>/status.json, report.html, launch.json   derived, and how it was launched
"""

from hpo_core.store.codec import trial_from_json, trial_to_json
from hpo_core.store.inbox import EDIT, STOP, STOP_TRIAL, Inbox, Request
from hpo_core.store.records import DELETING, EDITING, RETRAINING, TUNING, ExperimentStore, is_record, list_experiments
from hpo_core.store.together import together

__all__ = [
    "DELETING",
    "EDIT",
    "EDITING",
    "RETRAINING",
    "STOP",
    "STOP_TRIAL",
    "TUNING",
    "ExperimentStore",
    "Inbox",
    "Request",
    "is_record",
    "list_experiments",
    "together",
    "trial_from_json",
    "trial_to_json",
]
