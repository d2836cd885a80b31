"""What a pod knows of itself that a tuner which it launches has to be given too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from hpo_core.errors import LaunchError
from hpo_core.tuner.place import IMAGE_VARIABLE

POD_NAME = "KFP_POD_NAME"
"""Environment variable in which Kubeflow Pipelines tells a step the name of its pod."""
CONTAINER = "main"
"""What Kubeflow Pipelines calls the container of a step."""


def pod_like_own(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Tell how the pod of a tuner that a pipeline's step launches is to be: of the step's image, pulled as that was.

    So a component whose image was mirrored or retagged needs to be told nothing.

    Returns:
        As `Place.pod`; empty outside of a step, and where HPO_IMAGE names an image or we may not look at our pod.

    Raises:
        TransientError: The cluster cannot be asked now.
    """
    name = environment.get(POD_NAME)
    if not name or environment.get(IMAGE_VARIABLE):
        return {}
    # Imported here: the Kubernetes client is dear, and outside of a step it is not needed.
    from hpo_core.kube import Kube

    try:
        found = Kube.connect().list("v1", "Pod", field_selector=f"metadata.name={name}")
    except LaunchError:
        return {}
    for pod in found:
        for container in pod["spec"]["containers"]:
            if container["name"] == CONTAINER:
                secrets = pod["spec"].get("imagePullSecrets")
                return {"image": container["image"], **({"fields": {"imagePullSecrets": secrets}} if secrets else {})}
    return {}
