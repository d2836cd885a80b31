"""The kinds that the fake serves, and what it says when it refuses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Document: TypeAlias = dict[str, Any]

VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]


@dataclass(frozen=True)
class Kind:
    """A kind that is served."""

    api_version: str
    name: str
    plural: str
    namespaced: bool = True
    has_status: bool = False

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    @property
    def qualified(self) -> str:
        """Its plural as messages name it: `jobs.batch`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def discovery(self) -> Document:
        verbs = ["create"] if self.name == REVIEW.name else VERBS
        singular = self.name.lower()
        return {
            "name": self.plural,
            "singularName": singular,
            "namespaced": self.namespaced,
            "kind": self.name,
            "verbs": verbs,
        }


REVIEW = Kind("authorization.k8s.io/v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", namespaced=False)
POD = Kind("v1", "Pod", "pods", has_status=True)
JOB = Kind("batch/v1", "Job", "jobs", has_status=True)
NAMESPACE = Kind("v1", "Namespace", "namespaces", namespaced=False, has_status=True)
KINDS = (
    NAMESPACE,
    POD,
    Kind("v1", "ConfigMap", "configmaps"),
    Kind("v1", "Secret", "secrets"),
    Kind("v1", "Event", "events"),
    JOB,
    Kind("kubeflow.org/v1", "PyTorchJob", "pytorchjobs", has_status=True),
    Kind("kubeflow.org/v1", "TFJob", "tfjobs", has_status=True),
    REVIEW,
)


class Refusal(Exception):
    """An answer that is no success, as the server words it."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.details = code, reason, message, details

    def status(self) -> Document:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "details": self.details,
            "code": self.code,
        }


def about(kind: Kind, name: str) -> Document:
    return {"name": name, "group": kind.group, "kind": kind.plural}


def not_found(kind: Kind, name: str) -> Refusal:
    return Refusal(404, "NotFound", f'{kind.qualified} "{name}" not found', **about(kind, name))


def expired(message: str) -> Refusal:
    return Refusal(410, "Expired", message)


def check(kind: Kind, document: Mapping[str, Any]) -> None:
    """Refuse what a real server finds invalid, as far as tests need it."""
    name = document["metadata"]["name"]
    problems = []
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name) or len(name) > 253:
        problems.append(f'metadata.name: Invalid value: "{name}": a lowercase RFC 1123 subdomain must consist of ...')
    if kind in (POD, JOB):
        where = "spec" if kind is POD else "spec.template.spec"
        spec = (document.get("spec") or {}) if kind is POD else pod_spec(document)
        if not spec.get("containers"):
            problems.append(f"{where}.containers: Required value")
        if kind is JOB and spec.get("restartPolicy") not in ("Never", "OnFailure"):
            problems.append(f'{where}.restartPolicy: Required value: valid values: "OnFailure", "Never"')
    if problems:
        told = problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]"
        named = f"{kind.name}.{kind.group}" if kind.group else kind.name
        raise Refusal(
            422, "Invalid", f'{named} "{name}" is invalid: {told}', **{**about(kind, name), "kind": kind.name}
        )


def pod_spec(job: Mapping[str, Any]) -> Document:
    return dict(((job.get("spec") or {}).get("template") or {}).get("spec") or {})
