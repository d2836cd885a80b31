"""Finding pod templates in a workload of any kind, and containers in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, TypeAlias

Document: TypeAlias = Mapping[str, Any]
Changing: TypeAlias = MutableMapping[str, Any]


def pod_templates(document: Document, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Changing]]:
    """Yield each mapping whose `spec` holds `containers`, with the names of the fields that lead to it.

    A pod is one itself.
    """
    spec = document.get("spec")
    if isinstance(document, MutableMapping) and isinstance(spec, Mapping) and isinstance(spec.get("containers"), list):
        yield path, document
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from pod_templates(value, (*path, str(name)))


def container_of(template: Document, name: str) -> Changing | None:
    """Return a template's container of that name; None when there is none."""
    return named(template["spec"]["containers"], name)


def named(entries: Any, name: str) -> Changing | None:
    """Return the entry of that name in a list; None when there is none, or no list."""
    return next((entry for entry in entries or [] if entry.get("name") == name), None)
