"""The course of a sidecar: print the metrics file while the trainer runs, keep its output once it has ended."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterable, Sequence

from hpo_core.errors import StoreError, TransientError
from hpo_core.objects import ObjectStore, open_objects
from hpo_core.sidecar.following import Tail
from hpo_core.sidecar.order import Order
from hpo_core.sidecar.upload import Receipt, deliver

POLL_S = 0.25
"""How often the metrics file is looked at."""
TOLD_CHARACTERS = 2000
"""How much of the last word is told in the pod's status, which has room for 4096 bytes."""


def run(argv: Sequence[str]) -> int:
    """Do what a command line says; SIGTERM, which is blocked, tells that the trainer has ended.

    Returns:
        0 when everything is kept that is to be kept, 1 otherwise.
    """
    order = Order.of(argv)
    objects = _open(order)  # while the trainer runs, so that its end need not wait for imports
    _follow(order)
    if not order.is_primary or not order.label:
        return 0
    receipt = objects if isinstance(objects, Receipt) else deliver(objects, order)
    if receipt.error:
        _print([f"hpo-sidecar: the output is not kept: {receipt.error}\n".encode()])
    else:
        told = f"hpo-sidecar: {receipt.files} files, {receipt.size_bytes} bytes kept under {order.place}"
        _print([f"{told}{', ' if receipt.note else ''}{receipt.note}\n".encode()])
    with contextlib.suppress(OSError):
        order.tell.write_text(receipt.note[:TOLD_CHARACTERS])
    return 1 if receipt.error else 0


def _open(order: Order) -> ObjectStore | Receipt:
    """The store; a receipt with an error when it cannot even be opened."""
    try:
        return open_objects(order.store)
    except (StoreError, TransientError) as error:
        return Receipt(order.attempt, order.label, error=str(error))


def _follow(order: Order) -> None:
    """Wait for the end of the trainer, and print meanwhile, and to its very end, what it writes to the file."""
    if order.metrics is None or not order.is_primary:
        signal.sigwait({signal.SIGTERM})
        return
    tail = Tail(order.metrics, order.metrics_root)
    while signal.sigtimedwait({signal.SIGTERM}, POLL_S) is None:
        _print(tail.lines())
    _print(tail.lines())
    _print([tail.rest()])


def _print(pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
