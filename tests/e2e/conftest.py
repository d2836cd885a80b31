"""After each test: nothing of ours is in the cluster where tests have no business to be."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hpo_core.kube import Kube
from tests.contracts.cluster_machine import is_tests, left


class Elsewhere:
    """The namespaces that are not tests' own and hold nothing of ours at the beginning; others use theirs meanwhile."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        names = [found["metadata"]["name"] for found in kube.list("v1", "Namespace")]
        self.names = [name for name in names if not is_tests(name) and not left(kube, name)]

    def check(self) -> None:
        """Fail where something of ours has come to be in one of them."""
        found = {name: left(self._kube, name) for name in self.names}
        assert not any(found.values()), f"left outside of the tests' namespaces: {found}"


@pytest.fixture(scope="session")
def elsewhere() -> Elsewhere | None:
    return Elsewhere(Kube.connect()) if os.environ.get("KUBECONFIG") else None


@pytest.fixture(autouse=True)
def _nothing_elsewhere(elsewhere: Elsewhere | None) -> Iterator[None]:
    yield
    if elsewhere is not None:
        elsewhere.check()
