"""What a step's pod hands on to the tuner that it launches."""

from __future__ import annotations

from hpo_core.kube import Kube
from hpo_core.tuner import pod_like_own

STEP = {"KFP_POD_NAME": "step"}


def start(kube: Kube, name: str, **spec: object) -> None:
    containers = [{"name": "wait", "image": "argoexec:1"}, {"name": "main", "image": f"mirror/{name}:1"}]
    metadata = {"name": name, "namespace": kube.namespace}
    kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": containers, **spec}})


def test_a_tuner_gets_the_image_of_the_step_that_launches_it_and_what_that_was_pulled_with(kube: Kube) -> None:
    pulled = [{"name": "registry"}]
    start(kube, "step", imagePullSecrets=pulled)
    start(kube, "other")
    assert pod_like_own(STEP) == {"image": "mirror/step:1", "fields": {"imagePullSecrets": pulled}}
    assert pod_like_own({"KFP_POD_NAME": "other"}) == {"image": "mirror/other:1"}


def test_an_image_that_was_told_goes_first_and_outside_of_a_step_none_is_known(kube: Kube) -> None:
    start(kube, "step")
    assert pod_like_own({**STEP, "HPO_IMAGE": "told:1"}) == {}
    assert pod_like_own({}) == {}
    assert pod_like_own({"KFP_POD_NAME": "gone"}) == {}
