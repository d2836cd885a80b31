"""What a tuner has to be allowed to do in the namespace of its experiment, asked before anything is created.

`manifests/` grants just that; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from hpo_core.errors import LaunchError
from hpo_core.experiment import Experiment
from hpo_core.kube import Kube, Resource

ACCOUNT = "hpo-tuner"
"""The service account that the manifests make."""
PIPELINE_ACCOUNTS = ("default-editor", "pipeline-runner")
"""Those of notebooks and of pipeline steps in a Kubeflow profile."""
WORKLOAD_VERBS = ("create", "get", "list", "watch", "patch", "delete", "deletecollection")

_OVERLAYS = {
    "jobs.batch": "manifests/base",
    "pytorchjobs.kubeflow.org": "manifests/overlays/training-operator",
    "tfjobs.kubeflow.org": "manifests/overlays/training-operator",
    "xgboostjobs.kubeflow.org": "manifests/overlays/training-operator",
    "mpijobs.kubeflow.org": "manifests/overlays/training-operator",
    "trainjobs.trainer.kubeflow.org": "manifests/overlays/trainer",
}
_REVIEWS_AT_ONCE = 8
_T = TypeVar("_T")


class Patiently(Protocol):
    """Does something, and does it again while it fails transiently."""

    def __call__(self, action: Callable[[], _T], /) -> _T:
        """Return what it returns."""
        ...


def once(action: Callable[[], _T], /) -> _T:
    """Be no more patient than to try once."""
    return action()


@dataclass(frozen=True)
class Wish:
    """Something that may be allowed.

    Attributes:
        verb: Kubernetes's word.
        resource: The plural.
        group: Its group; "" for the core group.
        subresource: `log`, say; "" for the object itself.
    """

    verb: str
    resource: str
    group: str = ""
    subresource: str = ""

    @property
    def what(self) -> str:
        """What is acted on, as `kubectl` takes it: `jobs.batch`, `pods/log`."""
        named = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{named}/{self.subresource}" if self.subresource else named


LAUNCHING = (
    *(Wish(verb, "jobs", "batch") for verb in ("create", "get", "list", "delete", "deletecollection")),
    *(Wish(verb, "configmaps") for verb in ("create", "get", "patch", "delete", "deletecollection")),
    Wish("list", "pods"),
    Wish("list", "events"),
)
"""What starts a tuner as a Job, tells why it does not come up, and removes it then, or when it has been stopped."""
HELPFUL = (Wish("delete", "pods"),)
"""What is done without where it is not allowed: a trial that is stopped then ends with its sidecar's grace, later."""


def needed(workload: Resource) -> tuple[Wish, ...]:
    """Return all that a tuner does whose trials are of that kind; nothing of it reads a Secret or enters a pod."""
    return (
        *(Wish(verb, workload.plural, workload.group) for verb in WORKLOAD_VERBS),
        *(Wish(verb, "pods") for verb in ("list", "watch")),
        Wish("get", "pods", subresource="log"),
        *(Wish(verb, "events") for verb in ("list", "watch")),
        *(Wish(verb, "configmaps") for verb in ("create", "get", "delete")),
    )


def missing(kube: Kube, experiment: Experiment, patiently: Patiently = once) -> list[str]:
    """Tell what we may not do of all that tuning this experiment takes, and which command grants it.

    Args:
        kube: The API server.
        experiment: What is to be tuned.
        patiently: Asks the server each question.

    Returns:
        One sentence for each kind of object; empty when all is allowed.

    Raises:
        LaunchError: The kind of its trials is not served.
        TransientError: The server cannot be asked now.
    """
    spec = experiment.template.trial_spec
    workload = patiently(lambda: kube.resource(str(spec["apiVersion"]), str(spec["kind"])))
    return _refused(kube, needed(workload), experiment.namespace, patiently)


def missing_to_launch(kube: Kube, experiment: Experiment, patiently: Patiently = once) -> list[str]:
    """Tell the same of what it takes to start a tuner's Job, which then tunes with permissions of its own.

    Raises:
        TransientError: The server cannot be asked now.
    """
    return _refused(kube, LAUNCHING, experiment.namespace, patiently)


def _refused(kube: Kube, wishes: Sequence[Wish], namespace: str, patiently: Patiently) -> list[str]:
    def ask(wish: Wish) -> bool:
        where = {"group": wish.group, "subresource": wish.subresource, "namespace": namespace}
        return patiently(lambda: kube.allowed(wish.verb, wish.resource, **where))

    with ThreadPoolExecutor(_REVIEWS_AT_ONCE, thread_name_prefix="review") as reviews:
        refused = [wish for wish, allowed in zip(wishes, reviews.map(ask, wishes), strict=True) if not allowed]
    if not refused:
        return []
    user = patiently(lambda: _user(kube))
    kinds = dict.fromkeys(wish.what for wish in refused)
    return [_sentence(user, namespace, [wish for wish in refused if wish.what == what]) for what in kinds]


def _user(kube: Kube) -> str:
    """Who we are, in the server's words; a server that is too old to tell is not asked for more."""
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    try:
        status = kube.create(review).get("status") or {}
    except LaunchError:
        return "this account"
    return str((status.get("userInfo") or {}).get("username") or "this account")


def _sentence(user: str, namespace: str, refused: Sequence[Wish]) -> str:
    verbs, what = ", ".join(wish.verb for wish in refused), refused[0].what
    account = user.rpartition(":")[2]
    account = account if account in PIPELINE_ACCOUNTS else ACCOUNT
    command = _granting(namespace, account, what)
    return f"{user} may not {verbs} {what} in the namespace {namespace}: `{command}` grants that to {account}"


def _granting(namespace: str, account: str, what: str) -> str:
    """Write the command that gives an account what has to be done with objects of a kind."""
    place = _OVERLAYS.get(what, "" if "." in what else "manifests/base")
    if account != ACCOUNT:
        place = "manifests/overlays/kubeflow-profile" if place == "manifests/base" else ""
    if place:
        return f"kubectl apply -n {namespace} -k {place}"
    name = f"{account}-{what.partition('.')[0]}"
    role = f"kubectl create role {name} -n {namespace} --verb={','.join(WORKLOAD_VERBS)} --resource={what}"
    binding = f"kubectl create rolebinding {name} -n {namespace} --role={name} --serviceaccount={namespace}:{account}"
    return f"{role} && {binding}"
