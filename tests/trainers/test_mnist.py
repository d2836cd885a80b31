"""The MNIST trainer, run as users run it: arguments and environment in, printed lines, files and exit status out."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "torchvision", "sklearn")),
    reason="the trainer needs torch, torchvision and scikit-learn: pip install -r trainers/mnist/requirements.txt",
)

PROGRAM = Path(__file__).resolve().parents[2] / "trainers" / "mnist" / "mnist.py"
FIRST_TRIAL = ("--epochs=1", "--batch-size=16", "--lr=0.02", "--momentum=0.7")
METRIC = re.compile(r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)")
RUN_LIMIT_S = 120


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the program; what the caller's environment says to a trial does not reach it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HPO_")}
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT_S,
        check=False,
    )


def metrics_in(output: str) -> list[tuple[str, str]]:
    """Names and values as a collector of metrics would read them."""
    return [(found[1], found[2]) for found in METRIC.finditer(output)]


def write_split(raw: Path, part: str, count: int) -> None:
    """Writes `count` images, each a bright row at the height of its label, as two of MNIST's files."""
    labels = bytes(i % 10 for i in range(count))
    images = b"".join(b"\0" * 28 * 2 * label + b"\xff" * 28 * 2 + b"\0" * 28 * (26 - 2 * label) for label in labels)
    shape = b"".join(length.to_bytes(4, "big") for length in (count, 28, 28))
    (raw / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + shape + images)
    (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + shape[:4] + labels)


def small_mnist(folder: Path) -> Path:
    """A --data folder with 12 training images, two of them for validation, and 5 test images."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    write_split(raw, "train", 12)
    write_split(raw, "t10k", 5)
    return folder


def damage_test_split(data: Path) -> Path:
    for path in (data / "MNIST" / "raw").glob("t10k-*"):
        path.write_bytes(b"these are no digits")
    return data


def steps_trained(output: Path) -> int:
    """How many batches the saved network has seen: its normalisation layers count them."""
    import torch

    return int(torch.load(output / "model.pt", weights_only=True)["1.num_batches_tracked"])


@pytest.fixture(scope="module")
def mnist() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("mnist_trainer", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first trial's output directory, which does not exist before."""
    return tmp_path_factory.mktemp("trial") / "output"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for temporary files of the first trial."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def trial(output: Path, scratch: Path) -> subprocess.CompletedProcess[str]:
    """The trial of the first example in the README."""
    return run(*FIRST_TRIAL, HPO_OUTPUT_DIR=str(output), TMPDIR=str(scratch))


def test_a_trial_prints_validation_loss_and_accuracy_after_its_epoch(trial: subprocess.CompletedProcess[str]) -> None:
    assert trial.returncode == 0, trial.stderr
    assert [name for name, _ in metrics_in(trial.stdout)] == ["epoch", "loss", "accuracy", "train_loss"]


def test_one_epoch_with_the_first_assignment_recognises_most_digits(trial: subprocess.CompletedProcess[str]) -> None:
    assert float(dict(metrics_in(trial.stdout))["accuracy"]) > 0.8


def test_the_same_arguments_print_the_same_numbers(trial: subprocess.CompletedProcess[str]) -> None:
    assert run(*FIRST_TRIAL, HPO_PHASE="trial").stdout == trial.stdout


def test_other_values_of_the_tuned_parameters_give_another_loss(trial: subprocess.CompletedProcess[str]) -> None:
    """A step's size in the long run is lr / (1 - momentum): 0.067 in the first trial, 0.02 here, which learns less."""
    corner = run("--epochs=1", "--batch-size=16", "--lr=0.01", "--momentum=0.5")
    assert float(dict(metrics_in(corner.stdout))["loss"]) > float(dict(metrics_in(trial.stdout))["loss"])


def test_the_digits_leave_no_temporary_files(trial: subprocess.CompletedProcess[str], scratch: Path) -> None:
    assert trial.returncode == 0
    assert [path for path in scratch.rglob("*") if path.is_file()] == []  # torch leaves an empty folder of its own


def test_the_saved_model_reproduces_the_reported_accuracy(
    trial: subprocess.CompletedProcess[str], output: Path, mnist: ModuleType
) -> None:
    import torch

    network = mnist.build_network()
    network.load_state_dict(torch.load(output / "model.pt", weights_only=True))
    validation = mnist.cut_validation(mnist.load(None, train=True), seed=1)[1]
    loss, accuracy = mnist.evaluate(network, validation)
    printed = dict(metrics_in(trial.stdout))
    assert (f"{loss:.6g}", f"{accuracy:.6g}") == (printed["loss"], printed["accuracy"])


def test_the_saved_model_tells_what_it_is(trial: subprocess.CompletedProcess[str], output: Path) -> None:
    about = json.loads((output / "model.json").read_text())
    values = {"epochs": 1, "batch-size": 16, "lr": 0.02, "momentum": 0.7, "gamma": 1.0, "seed": 1}
    assert (about["assignment"], about["phase"], about["dataset"]) == (values, "trial", "scikit-learn digits")
    assert f"{about['metrics']['loss']:.6g}" == dict(metrics_in(trial.stdout))["loss"]
    assert sorted(path.name for path in output.iterdir()) == ["model.json", "model.pt"]


def test_tuning_does_not_look_at_the_test_split(tmp_path: Path) -> None:
    data = damage_test_split(small_mnist(tmp_path / "data"))
    tuned = run("--data", str(data), "--batch-size=1", HPO_OUTPUT_DIR=str(tmp_path / "out"))
    assert tuned.returncode == 0, tuned.stderr
    assert steps_trained(tmp_path / "out") == 10


def test_retraining_reads_the_test_split_and_refuses_a_damaged_one(tmp_path: Path) -> None:
    data = damage_test_split(small_mnist(tmp_path / "data"))
    retrained = run("--data", str(data), HPO_PHASE="retrain")
    assert retrained.returncode == 2
    assert re.search(r"^mnist.py: error: the test files in .* are not in MNIST's format", retrained.stderr)
    assert len(retrained.stderr.splitlines()) == 1


def test_retraining_takes_train_and_validation_images_and_tests_once_at_the_end(tmp_path: Path) -> None:
    data = small_mnist(tmp_path / "data")
    options = ("--data", str(data), "--batch-size=1", "--epochs=2")
    retrained = run(*options, HPO_PHASE="retrain", HPO_OUTPUT_DIR=str(tmp_path / "out"))
    assert retrained.returncode == 0, retrained.stderr
    names = [name for name, _ in metrics_in(retrained.stdout)]
    assert names == ["epoch", "train_loss", "epoch", "train_loss", "test_loss", "test_accuracy"]
    assert steps_trained(tmp_path / "out") == 2 * 12


def test_a_loss_that_is_not_finite_is_printed_once_and_ends_the_training(tmp_path: Path) -> None:
    data = small_mnist(tmp_path / "data")
    diverged = run(
        "--data", str(data), "--lr=1e30", "--batch-size=2", "--epochs=3", HPO_OUTPUT_DIR=str(tmp_path / "out")
    )
    assert diverged.returncode == 0
    assert re.fullmatch(r"epoch=1 loss=nan accuracy=\S+ train_loss=(nan|inf)\n", diverged.stdout)
    assert "stopped in epoch 1: the loss is not finite" in diverged.stderr
    assert json.loads((tmp_path / "out" / "model.json").read_text())["metrics"]["loss"] is None


def test_all_wrong_arguments_are_told_in_one_message() -> None:
    refused = run("--lr=inf", "--momentum=1", "--gamma=0", "--epochs=1.5", "--batch-size=0", "--seed=x", HPO_PHASE="go")
    assert (refused.returncode, refused.stdout) == (2, "")
    message = refused.stderr.splitlines()[-1]
    for name in ("--lr", "--momentum", "--gamma", "--epochs", "--batch-size", "--seed", "HPO_PHASE"):
        assert f"{name} must be " in message


@pytest.mark.parametrize("argument", ["--lr=0", "--lr=nan", "--lr=-0.1", "--momentum=-0.1", "--momentum=nan"])
def test_a_value_out_of_range_is_told_with_what_is_allowed(argument: str) -> None:
    refused = run(argument)
    name, value = argument.split("=")
    assert refused.returncode == 2
    assert re.search(rf"error: {name} must be a (finite )?number .*, not '{value}'\n$", refused.stderr)


def test_missing_data_is_told_with_the_files_that_are_looked_for(tmp_path: Path) -> None:
    data = small_mnist(tmp_path / "data")
    missing = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    for name in missing:
        (data / "MNIST" / "raw" / name).unlink()
    refused = run("--data", str(data))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"--data {data}: not found in {data}/MNIST/raw: {', '.join(missing)}." in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_an_output_directory_that_cannot_be_made_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = run(HPO_OUTPUT_DIR=str(tmp_path / "file" / "out"))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"mnist.py: error: HPO_OUTPUT_DIR: {tmp_path}/file/out cannot be made: Not a directory\n"


@pytest.fixture(scope="module")
def numbered(mnist: ModuleType) -> Any:
    """100 images whose first pixel is their number."""
    import torch

    pixels = torch.zeros(100, 28, 28, dtype=torch.uint8)
    pixels[:, 0, 0] = torch.arange(100)
    return mnist.Images(pixels, torch.arange(100) % 10)


def test_the_cut_is_disjoint_and_complete_and_decided_by_the_seed(mnist: ModuleType, numbered: Any) -> None:
    cuts = [[part.pixels[:, 0, 0].tolist() for part in mnist.cut_validation(numbered, seed)] for seed in (1, 1, 2)]
    training, validation = cuts[0]
    assert sorted(training + validation) == list(range(100))
    assert len(validation) == 100 // 6
    assert cuts[0] == cuts[1]
    assert cuts[0] != cuts[2]


def test_batches_hold_each_image_once_and_none_is_much_smaller(mnist: ModuleType) -> None:
    import torch

    cut = list(mnist.batches(torch.arange(1250), 16))
    assert torch.equal(torch.cat(cut), torch.arange(1250))
    assert {len(batch) for batch in cut} == {15, 16}


def test_gamma_lowers_the_learning_rate_after_each_epoch(mnist: ModuleType, numbered: Any) -> None:
    """With a gamma of almost nothing, a second epoch leaves the weights where the first one left them."""
    import torch

    def weights(epochs: int, gamma: float) -> Any:
        assignment = {"epochs": epochs, "batch-size": 10, "lr": 0.1, "momentum": 0.0, "gamma": gamma}
        torch.manual_seed(0)
        network = mnist.build_network()
        mnist.fit(network, numbered, None, mnist.Options(assignment, None, "retrain", None))
        return network[-1].weight.detach()

    assert torch.allclose(weights(2, 1e-12), weights(1, 1.0))
    assert not torch.allclose(weights(2, 1.0), weights(1, 1.0))


def test_the_digits_are_those_of_scikit_learn_and_each_is_in_one_split(mnist: ModuleType) -> None:
    import torch
    from sklearn.datasets import load_digits

    splits = [mnist.load(None, train=train) for train in (True, False)]
    pixels, labels = (torch.cat([getattr(split, name) for split in splits]) for name in ("pixels", "labels"))
    digits = load_digits()
    assert labels.tolist() == digits.target.tolist()
    centres = pixels[:, 3:26:3, 3:26:3].float()
    assert torch.equal(centres, torch.from_numpy(digits.images * 255 // 16).float())


def test_help_shows_an_example_and_the_defaults() -> None:
    shown = run("--help").stdout
    assert " ".join(("example: python3 mnist.py", *FIRST_TRIAL)) in shown
    assert shown.count("(default: ") >= 7
