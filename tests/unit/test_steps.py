"""What steps of a pipeline decide by themselves."""

from __future__ import annotations

import pytest

from hpo_core import steps
from hpo_core.errors import BuildError, SpecError


def test_an_image_that_is_given_is_taken_as_it_is_and_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert steps.build("/no/such/folder", image="team/trainer:1") == "team/trainer:1"


def test_where_neither_a_folder_nor_an_image_is_given_the_experiments_own_is_meant() -> None:
    assert steps.build("") == ""


def test_a_step_in_a_cluster_says_that_it_cannot_build_and_what_to_give_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(BuildError, match=r"cannot build 'trainer': .* give its reference as `image`"):
        steps.build("trainer")


def test_a_component_of_another_version_than_its_image_is_refused() -> None:
    with pytest.raises(SpecError, match=r"the component is of version 0\.0\.0, its image has .*: use the image tagged"):
        steps.require("0.0.0")
