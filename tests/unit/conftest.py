"""What many tests of the engine begin with: a Kubernetes API server of their own, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hpo_core.kube import Kube
from tests.fake_kubernetes import FakeKubernetes


@pytest.fixture
def fake() -> Iterator[FakeKubernetes]:
    fake = FakeKubernetes()
    yield fake
    fake.close()


@pytest.fixture
def kube(fake: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kube:
    """The cluster that a kubeconfig names."""
    monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path)))
    return Kube.connect()
