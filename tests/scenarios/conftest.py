"""Scenarios run on a directory in `make test`, and on the S3 server that AWS_ENDPOINT_URL names in `make e2e`."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.e2e)])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an empty store; what this machine keeps beside it goes into the test's folder."""
    if request.param == "directory":
        return str(tmp_path / "store")
    if not os.environ.get("AWS_ENDPOINT_URL"):
        pytest.skip("NO S3 SERVER: set AWS_ENDPOINT_URL and credentials to prove this on S3 too")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return f"s3://kfp-hpo-tests/{secrets.token_hex(6)}"
