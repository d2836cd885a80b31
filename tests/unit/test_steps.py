"""What steps of a pipeline decide by themselves."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hpo_core import __version__, steps
from hpo_core.errors import BuildError, SpecError, TransientError


def test_an_image_that_is_given_is_taken_as_it_is_and_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert steps.build("/no/such/folder", image="team/trainer:1") == "team/trainer:1"


def test_where_neither_a_folder_nor_an_image_is_given_the_experiments_own_is_meant() -> None:
    assert steps.build("") == ""


def test_a_step_in_a_cluster_says_that_it_cannot_build_and_what_to_give_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(BuildError, match=r"cannot build 'trainer': .* give its reference as `image`"):
        steps.build("trainer")


def test_a_component_of_another_version_than_its_image_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SpecError, match=r"the component is of version 0\.0\.0, its image has .*: use the image tagged"):
        steps.require("0.0.0")


PROGRAM = """
from hpo_core import steps
steps.require({version!r})
{fails}
"""


@pytest.mark.parametrize(
    ("fails", "printed"),
    [
        ("steps.wait('{}', '', '')", ["SpecError: handle: is no handle of an experiment: "]),
        ("{}['told']", ["Traceback (most recent call last):", "KeyError: 'told'"]),
    ],
    ids=["ours", "a defect"],
)
def test_an_error_of_ours_is_told_by_its_message_alone_and_a_defect_with_all_that_helps(
    fails: str, printed: list[str]
) -> None:
    program = PROGRAM.format(version=__version__, fails=fails)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert [lines[0].startswith(printed[0]), lines[-1].startswith(printed[-1])] == [True, True], done.stderr
    assert len(lines) == 1 or printed[0].startswith("Traceback")


def test_what_fails_transiently_is_done_again() -> None:
    tries = []

    @steps.patient
    def third(word: str) -> str:
        tries.append(word)
        if len(tries) < 3:
            raise TransientError("it does not answer", retry_after_s=0)
        return word

    assert third("done") == "done"
    assert tries == ["done"] * 3
