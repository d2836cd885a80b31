"""Everything that can be wrong with an Experiment YAML, in one list.

The document's own rules are `experiment`'s; here the demands of the algorithm, the metric filters and the backend are
added, so that a user sees all of it at once and before anything is started.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from hpo_core import metrics, search
from hpo_core.errors import Problem, SpecError
from hpo_core.experiment import Draft, Experiment, read_draft
from hpo_core.launch import command
from hpo_core.launch.cluster import check as cluster

AUTO, LOCAL, KUBERNETES = "auto", "local", "kubernetes"
BACKENDS = (AUTO, LOCAL, KUBERNETES)
"""Where trials can run; `auto` is the cluster in a pod, and this machine elsewhere."""


def resolve_backend(backend: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the backend that is meant."""
    if backend != AUTO:
        return backend
    return KUBERNETES if "KUBERNETES_SERVICE_HOST" in environment else LOCAL


def lint(text: str, *, image: str = "", namespace: str = "", backend: str = AUTO) -> Draft:
    """Look at an Experiment document from every side.

    Args:
        text: The document.
        image: Put into every container that shows the primary container's image; "" leaves them alone.
        namespace: Used instead of the document's; "" leaves it alone.
        backend: Where it is to run, one of BACKENDS.

    Returns:
        The draft; `findings` holds all problems and warnings.

    Raises:
        SpecError: It is no Experiment document at all.
    """
    draft = read_draft(text, image=image, namespace=namespace)
    search.check(draft)
    metrics.check(draft)
    if resolve_backend(backend) == LOCAL:
        command.check(draft)
    else:
        cluster.check(draft)
    return draft


def load_experiment(path: str | Path, *, image: str = "", namespace: str = "") -> Experiment:
    """Read an Experiment from a YAML file.

    Raises:
        SpecError: It cannot be run as it is; every problem is listed.
    """
    return lint(read_text(path), image=image, namespace=namespace).experiment()


def read_text(path: str | Path) -> str:
    """Read a YAML file.

    Raises:
        SpecError: There is no such file, or it is no text.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(
            [Problem(str(path), f"cannot be read: {error.strerror}; give the path of a YAML file")]
        ) from error
    except UnicodeDecodeError as error:
        raise SpecError([Problem(str(path), f"is no text: {error.reason} at byte {error.start}")]) from error
