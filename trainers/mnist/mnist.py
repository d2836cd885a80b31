"""Trains a small network on handwritten digits and prints its metrics as `name=value` lines.

Owns one training run: its arguments, its data, its network and the model that it leaves behind. Which values are
tried, and what becomes of the printed metrics, is left to whoever starts it.

The training files are cut into training and validation images. While tuning only these are read; the test files
are read once, at the end of retraining. Torch takes seconds to import, so the functions that need it import it:
a wrong argument is told at once.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn
    from torch.optim import Optimizer

PHASES = ("trial", "retrain")
MNIST_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
ARCHITECTURE = "cnn-8-16"
VALIDATION_SHARE = 6  # one image in six, as 10,000 of MNIST's 60,000
DIGITS_FOR_TRAINING = 1500  # of 1797; the others, from other writers, are the test set whatever the seed
EVALUATION_BATCH = 1000


class InputError(Exception):
    """Data or a setting that this program cannot work with; the message is for the user."""


@dataclass(frozen=True)
class Flag:
    """One number of the command line: its type, default, range (in words and as a test) and meaning."""

    name: str
    kind: type[int] | type[float]
    default: float
    allowed: str
    holds: Callable[[float], bool]
    meaning: str


FLAGS = (
    Flag("epochs", int, 1, "a whole number, 1 or more", lambda n: n >= 1, "passes over the training images"),
    Flag("batch-size", int, 16, "a whole number, 1 or more", lambda n: n >= 1, "most images in one step"),
    Flag("lr", float, 0.02, "a finite number above 0", lambda x: 0 < x < math.inf, "learning rate of SGD"),
    Flag("momentum", float, 0.7, "a number from 0 to below 1", lambda x: 0 <= x < 1, "momentum of SGD"),
    Flag("gamma", float, 1.0, "a number above 0, at most 1", lambda x: 0 < x <= 1, "lr is multiplied by it each epoch"),
    Flag("seed", int, 1, "a whole number from 0 to 2^63-1", lambda n: 0 <= n < 2**63, "of weights, order and cut"),
)


@dataclass(frozen=True)
class Options:
    """What one run is asked to do.

    Attributes:
        assignment: Value of every flag in FLAGS, by name.
        data: Folder that holds `MNIST/raw/`; None means the digits that come with scikit-learn.
        phase: `trial` or `retrain`.
        output: Folder for the model; None means that it is not kept.
    """

    assignment: Mapping[str, float]
    data: Path | None
    phase: str
    output: Path | None

    def whole(self, name: str) -> int:
        """Value of a flag that counts something."""
        return int(self.assignment[name])


@dataclass(frozen=True)
class Images:
    """Pixels, uint8 of shape (count, 28, 28), and their labels, int64 from 0 to 9."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, index: Tensor) -> Images:
        """These images, in this order."""
        return Images(self.pixels[index], self.labels[index])


def command_line() -> argparse.ArgumentParser:
    """The flags; numbers stay text, so that all that is wrong with them can be told together."""
    parser = argparse.ArgumentParser(
        prog="mnist.py",
        description="Train a small network on handwritten digits; print loss and accuracy after each epoch.",
        epilog="example: python3 mnist.py --epochs=1 --batch-size=16 --lr=0.02 --momentum=0.7\n\n"
        "environment:\n"
        "  HPO_PHASE       trial (default): train, print the validation loss and accuracy\n"
        "                  retrain: train on train and validation images, print test_loss and test_accuracy\n"
        "  HPO_OUTPUT_DIR  folder for model.pt and model.json (default: no model is kept)\n"
        "  OMP_NUM_THREADS threads that torch uses (default: 1, the network is too small for more)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for flag in FLAGS:
        about = f"{flag.meaning}: {flag.allowed} (default: {flag.default})"
        parser.add_argument(f"--{flag.name}", default=str(flag.default), metavar="N", help=about)
    about = "folder with MNIST's own files, unpacked, in DIR/MNIST/raw (default: the digits that scikit-learn bundles)"
    parser.add_argument("--data", type=Path, metavar="DIR", help=about)
    return parser


def read_options(argv: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Reads command line and environment; exits with 2 and one message when something is wrong with them.

    Args:
        argv: Arguments, without the program's name.
        environ: Of it HPO_PHASE and HPO_OUTPUT_DIR are read; an empty value counts as absent.

    Returns:
        The options, all in range.
    """
    parser = command_line()
    given = parser.parse_args(argv)
    assignment, problems = {}, []
    for flag in FLAGS:
        text = getattr(given, flag.name.replace("-", "_"))
        value = read_number(flag, text)
        if value is None:
            problems.append(f"--{flag.name} must be {flag.allowed}, not {text!r}")
        else:
            assignment[flag.name] = value
    phase = environ.get("HPO_PHASE") or PHASES[0]
    if phase not in PHASES:
        problems.append(f"HPO_PHASE must be {' or '.join(PHASES)}, not {phase!r}")
    if problems:
        parser.error("; ".join(problems))
    output = environ.get("HPO_OUTPUT_DIR")
    return Options(assignment, given.data, phase, Path(output) if output else None)


def read_number(flag: Flag, text: str) -> float | None:
    """The flag's value; None when the text is no number of its type, or out of range."""
    try:
        value = flag.kind(text)
    except ValueError:
        return None
    return value if flag.holds(value) else None


def read_digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Scikit-learn's bundled digits.

    Their file is read in place: importing scikit-learn takes a second and 70 MiB, which each trial would pay.

    Returns:
        Pixels from 0 to 16, shape (1797, 8, 8), and labels, shape (1797,).

    Raises:
        InputError: Scikit-learn is not installed.
    """
    import numpy as np

    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise InputError("the digits come with scikit-learn, which is not installed: install it, or pass --data DIR")
    table = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if table.is_file():
        rows = np.loadtxt(table, delimiter=",", dtype=np.uint8)
        return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.uint8)


def write_digits(raw: Path) -> None:
    """Writes the digits as MNIST's four files: each 8x8 image three times as large, in a margin of two pixels."""
    import numpy as np

    small, labels = read_digits()
    scaled = (small.astype(np.uint16) * 255 // 16).astype(np.uint8)
    pixels = np.pad(scaled.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))
    raw.mkdir(parents=True)
    for part, chosen in (("train", slice(DIGITS_FOR_TRAINING)), ("t10k", slice(DIGITS_FOR_TRAINING, None))):
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels[chosen])
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels[chosen])


def write_idx(path: Path, values: NDArray[np.uint8]) -> None:
    """Writes bytes in MNIST's file format: type and dimensions, lengths in network order, the bytes."""
    lengths = b"".join(length.to_bytes(4, "big") for length in values.shape)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + lengths + values.tobytes())


@contextmanager
def mnist_folder(data: Path | None) -> Iterator[Path]:
    """A folder that torchvision's MNIST loader can read: the user's, or one of digits that is removed afterwards.

    Raises:
        InputError: The user's folder lacks one of the files.
    """
    if data is None:
        with TemporaryDirectory(prefix="digits-") as folder:
            write_digits(Path(folder) / "MNIST" / "raw")
            yield Path(folder)
        return
    raw = data / "MNIST" / "raw"
    missing = [name for name in MNIST_FILES if not (raw / name).is_file()]
    if missing:
        raise InputError(
            f"--data {data}: not found in {raw}: {', '.join(missing)}. Put MNIST's own files there under these names, "
            "unpacked (gunzip); or leave --data out to train on the digits that scikit-learn bundles"
        )
    yield data


def load(data: Path | None, *, train: bool) -> Images:
    """Reads the training files, or the test files, through torchvision's loader; never downloads.

    Args:
        data: As in Options.
        train: True for the training files, False for the test files. The other two are not opened.

    Raises:
        InputError: A file is missing or is not what MNIST's files are.
    """
    which = "training" if train else "test"
    with mnist_folder(data) as folder:
        from torchvision.datasets import MNIST

        try:
            dataset = MNIST(folder, train=train)
        except (OSError, ValueError, TypeError, KeyError, AssertionError, RuntimeError) as error:
            raise InputError(f"the {which} files in {folder}/MNIST/raw are not in MNIST's format: {error!r}") from error
    images = Images(dataset.data, dataset.targets)
    shape = tuple(images.pixels.shape)
    if shape != (len(images), 28, 28) or len(images) < 2 or int(images.labels.max()) > 9:
        raise InputError(
            f"the {which} files in {folder}/MNIST/raw hold pixels of shape {shape} and {len(images)} labels; "
            "allowed are at least two images of 28x28 pixels and for each a label from 0 to 9"
        )
    return images


def cut_validation(images: Images, seed: int) -> tuple[Images, Images]:
    """Cuts the training images into those to train on and, one in six, those to validate on; the seed decides which."""
    import torch

    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held_out = max(1, len(images) // VALIDATION_SHARE)
    return images.at(order[held_out:]), images.at(order[:held_out])


def build_network() -> nn.Sequential:
    """Two convolutions and a linear layer: (count, 1, 28, 28), pixels from 0 to 1, to (count, 10), logits."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 8, kernel_size=5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, kernel_size=5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 10),
    )


def as_input(pixels: Tensor) -> Tensor:
    """Pixels as the network takes them."""
    return pixels.unsqueeze(1).float() / 255


def batches(order: Tensor, size: int) -> Iterator[Tensor]:
    """Cuts an order into batches of at most this size, as even as can be.

    A small last batch, 2 of 1250 images at size 16, would spoil the epoch with a step on two images' whim.
    """
    yield from order.tensor_split(-(-len(order) // size))


def train_epoch(network: nn.Sequential, images: Images, batch_size: int, optimizer: Optimizer) -> float:
    """Shows each image once, in random order, and stops early at a loss that is not finite.

    Returns:
        Mean loss of the images; not finite when training broke down.
    """
    import torch
    from torch.nn.functional import cross_entropy

    network.train()
    total = 0.0
    for index in batches(torch.randperm(len(images)), batch_size):
        batch = images.at(index)
        loss = cross_entropy(network(as_input(batch.pixels)), batch.labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        total += loss.item() * len(batch)
        if not math.isfinite(total):
            break
    return total / len(images)


def evaluate(network: nn.Sequential, images: Images) -> tuple[float, float]:
    """Mean cross-entropy of the images, and the share of them that is recognised."""
    import torch
    from torch.nn.functional import cross_entropy

    network.eval()
    total, right = 0.0, 0
    with torch.no_grad():
        for index in batches(torch.arange(len(images)), EVALUATION_BATCH):
            batch = images.at(index)
            logits = network(as_input(batch.pixels))
            total += cross_entropy(logits, batch.labels, reduction="sum").item()
            right += int((logits.argmax(dim=1) == batch.labels).sum())
    return total / len(images), right / len(images)


def fit(network: nn.Sequential, images: Images, validation: Images | None, options: Options) -> dict[str, float]:
    """Trains the network and prints a line per epoch; a loss that is not finite is printed and ends the training.

    Args:
        network: Is changed.
        images: To train on.
        validation: To measure loss and accuracy on after each epoch; None measures the training loss alone.
        options: Epochs, batch size and the optimizer's settings.

    Returns:
        Metrics of the last epoch by name.
    """
    from torch.optim import SGD
    from torch.optim.lr_scheduler import ExponentialLR

    optimizer = SGD(network.parameters(), lr=options.assignment["lr"], momentum=options.assignment["momentum"])
    schedule = ExponentialLR(optimizer, gamma=options.assignment["gamma"])
    metrics: dict[str, float] = {}
    for epoch in range(1, options.whole("epochs") + 1):
        train_loss = train_epoch(network, images, options.whole("batch-size"), optimizer)
        if validation is not None:
            metrics["loss"], metrics["accuracy"] = evaluate(network, validation)
        metrics["train_loss"] = train_loss
        print(f"epoch={epoch}", metric_line(metrics), flush=True)
        if not all(map(math.isfinite, metrics.values())):
            print(f"mnist.py: stopped in epoch {epoch}: the loss is not finite; try a lower --lr", file=sys.stderr)
            break
        schedule.step()
    return metrics


def metric_line(metrics: Mapping[str, float]) -> str:
    """The metrics as `name=value`, six digits each."""
    return " ".join(f"{name}={value:.6g}" for name, value in metrics.items())


def save(network: nn.Sequential, options: Options, output: Path, metrics: Mapping[str, float]) -> None:
    """Writes model.pt, the weights, and then model.json, what they are; each appears whole or not at all.

    A metric that is not finite is null there, since JSON has no other word for it.
    """
    import torch

    weights = io.BytesIO()
    torch.save(network.state_dict(), weights)
    about: dict[str, Any] = {
        "architecture": ARCHITECTURE,
        "input": "float32 of shape (count, 1, 28, 28): pixels divided by 255",
        "assignment": dict(options.assignment),
        "phase": options.phase,
        "dataset": "scikit-learn digits" if options.data is None else str(options.data),
        "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
    }
    write_whole(output / "model.pt", weights.getvalue())
    write_whole(output / "model.json", json.dumps(about, indent=2).encode())


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file beside its place and moves it there, so that no reader sees half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def prepare_output(output: Path) -> None:
    """Makes the output folder, so that a wrong one is told before the training and not after it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"HPO_OUTPUT_DIR: {output} cannot be made: {error.strerror}") from error
    if not os.access(output, os.W_OK):
        raise InputError(f"HPO_OUTPUT_DIR: {output} cannot be written to by this user")


def run(options: Options) -> None:
    """One run, from the data to the saved model.

    Raises:
        InputError: The data or the output folder cannot be used.
    """
    if options.output is not None:
        prepare_output(options.output)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # in a container torch would start a thread per core of the node
    images = load(options.data, train=True)
    import torch

    torch.manual_seed(options.whole("seed"))
    network = build_network()
    if options.phase == "retrain":
        metrics = fit(network, images, None, options)
        test_loss, test_accuracy = evaluate(network, load(options.data, train=False))
        tested = {"test_loss": test_loss, "test_accuracy": test_accuracy}
        print(metric_line(tested), flush=True)
        metrics |= tested
    else:
        training, validation = cut_validation(images, options.whole("seed"))
        metrics = fit(network, training, validation, options)
    if options.output is not None:
        save(network, options, options.output, metrics)


def main() -> int:
    """Runs the program.

    Returns:
        0 when it ran to the end, 1 when a file could not be written, 2 when it was asked for what it cannot do.
    """
    options = read_options(sys.argv[1:], os.environ)
    try:
        run(options)
    except InputError as error:
        print(f"mnist.py: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"mnist.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os._exit(main())  # every line is flushed; torch's own tear-down takes 0.4 s and 130 MiB above the peak of training
