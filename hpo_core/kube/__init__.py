"""The Kubernetes API as JSON documents of any kind: create, read, watch, delete, logs, access reviews.

This is the only door to the Kubernetes client, which finds the server and proves who we are; what is asked and what is
answered are plain dictionaries, never generated models. It knows requests and answers; trials are `launch`'s.
Nothing is tried again here but what watches do to reconnect; every other retry is `loop`'s.
"""

from hpo_core.kube.client import Kube
from hpo_core.kube.faults import Forbidden, Refused
from hpo_core.kube.kinds import Resource
from hpo_core.kube.watching import Changed, Listed, Watch
from hpo_core.kube.wire import Stream

__all__ = ["Changed", "Forbidden", "Kube", "Listed", "Refused", "Resource", "Stream", "Watch"]
