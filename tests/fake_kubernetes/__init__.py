"""A Kubernetes API server over HTTP, without a cluster: what is asked of a real one by `hpo_core.kube`, and faults.

`tests/contracts/test_kube.py` proves that it answers as a real server does. It runs no pods: a test is their kubelet.
"""

from tests.fake_kubernetes.cluster import FakeKubernetes

__all__ = ["FakeKubernetes"]
