"""COPY and ADD: what they name, and how it gets into a stage's tree, as Docker does it.

Where the files come from (the context or another stage) is decided by `stages`; the tree's own laws are `tree`'s.
"""

from __future__ import annotations

import difflib
import gzip
import lzma
import posixpath
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from e2b_dockerfile_utils import chomp_heredoc_content, parse_heredoc

from hpo_core.errors import BuildError
from hpo_core.images.context import Context
from hpo_core.images.dockerfile import Instruction, Script, suggestion
from hpo_core.images.tree import ChangeMode, File, Files, Folder, Tree, copy, find, is_pattern, join, resolve

_FLAGS = {
    "COPY": ("chmod", "chown", "from", "link"),
    "ADD": ("chmod", "chown", "link", "checksum", "keep-git-dir", "unpack"),
}
_REMOTE = re.compile(r"(https?|ftp|git|ssh)://|git@", re.IGNORECASE)
_OCTAL = re.compile(r"[0-7]{1,4}")
_CLAUSE = re.compile(r"([ugoa]*)([-+=])([rwxX]*)")
_SHIFTS = {"u": 6, "g": 3, "o": 0}
_BAD_ARCHIVE = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, KeyError)
_BITS = {"r": 4, "w": 2, "x": 1}


@dataclass(frozen=True)
class Request:
    """A COPY or ADD with every variable replaced.

    Attributes:
        sources: Paths or patterns; those of heredocs are not among them.
        texts: Name and content of each heredoc.
        target: Path in the image, without a leading `/`.
        into_folder: The target was written as a folder, with `/` at its end.
        change_mode: What `--chmod` asks for; None keeps the permission bits.
        stage: What `--from` names; empty for the build context.
        unpack: Tar archives are unpacked.
    """

    sources: tuple[str, ...]
    texts: Mapping[str, str]
    target: str
    into_folder: bool
    change_mode: ChangeMode | None
    stage: str
    unpack: bool


def read_request(script: Script, instruction: Instruction, variables: Mapping[str, str], workdir: str) -> Request:
    """Reads one COPY or ADD.

    Args:
        script: The Dockerfile.
        instruction: The COPY or ADD in it.
        variables: For substitution.
        workdir: Absolute path that a relative target starts from.

    Raises:
        BuildError: It cannot be understood, or needs a network; one problem a line.
    """
    flags = _flags(instruction)
    if len(instruction.args) < 2:
        raise BuildError(
            f"{instruction.name} needs at least one source and a target, as in {instruction.name} train.py /app/"
        )
    *words, target = instruction.args
    texts = _texts(script, instruction, variables)
    sources = [script.expand(word, variables) for word in words if instruction.json or not parse_heredoc(word)]
    target = script.expand(target, variables)
    if messages := [message for source in sources if (message := _not_here(instruction.name, source, "from" in flags))]:
        raise BuildError("\n".join(messages))
    return Request(
        tuple(sources),
        texts,
        posixpath.normpath(posixpath.join("/", workdir, target)).lstrip("/"),
        posixpath.basename(target) in ("", ".", ".."),
        parse_mode(script.expand(flags["chmod"], variables)) if "chmod" in flags else None,
        flags.get("from", ""),
        instruction.name == "ADD" and flags.get("unpack", "true") != "false",
    )


def carry_out(request: Request, files: Files, tree: Tree, scratch: Path) -> None:
    """Copies what was asked for into the tree.

    Args:
        request: What to copy.
        files: Where from.
        tree: Where to.
        scratch: An existing folder for what is unpacked.

    Raises:
        BuildError: Something could not be copied; one problem a line.
    """
    problems: list[str] = []
    found = list(_found(request.sources, files, problems))
    place = resolve(tree, request.target)
    into_folder = request.into_folder or (place is not None and isinstance(tree.node(place), Folder))
    if len(found) + len(request.texts) > 1 and not into_folder:
        problems.append(f"several sources need a folder as target; write /{request.target}/ with a slash at its end")
        found = []
    for source in found:
        problems += _copy_one(request, files, source, tree, into_folder, scratch)
    for name, text in request.texts.items():
        path = join(request.target, name) if into_folder else request.target
        tree.put(path, File(text.encode(), (request.change_mode or _as_is)(0o644)))
    if problems:
        raise BuildError("\n".join(problems))


def parse_mode(text: str) -> ChangeMode:
    """Reads the value of `--chmod`.

    Args:
        text: Octal as `755`, or symbolic as `u=rwX,go=rX` or `+x`.

    Returns:
        From a file's permission bits to those it shall have; what goes beyond rwx is dropped.

    Raises:
        BuildError: Neither of both.
    """
    if _OCTAL.fullmatch(text):
        return lambda _: int(text, 8) & 0o777
    clauses = [_CLAUSE.fullmatch(part) for part in text.split(",")]
    if not all(clauses):
        raise BuildError(f"--chmod={text} is no file mode; write it as --chmod=755 or --chmod=u=rwX,go=rX")
    parts = [clause.groups() for clause in clauses if clause]

    def change(mode: int) -> int:
        for who, sign, letters in parts:
            mode = _apply(mode, who, sign, letters)
        return mode

    return change


def _apply(mode: int, who: str, sign: str, letters: str) -> int:
    letters = letters.replace("X", "x" if mode & 0o111 else "")
    bits = sum(_BITS[letter] for letter in set(letters))
    shifts = [_SHIFTS[each] for each in ("ugo" if not who or "a" in who else set(who))]
    wanted, all_bits = (sum(value << shift for shift in shifts) for value in (bits, 7))
    if sign == "=":
        return mode & ~all_bits | wanted
    return mode | wanted if sign == "+" else mode & ~wanted


def _as_is(mode: int) -> int:
    return mode


def _flags(instruction: Instruction) -> dict[str, str]:
    pairs = [flag.removeprefix("--").partition("=") for flag in instruction.flags]
    known = _FLAGS[instruction.name]
    allowed = [f"--{each}" for each in known]
    bad = [
        f"{instruction.name} --{name} is not supported without a container engine; "
        f"allowed are {', '.join(allowed)}{suggestion(f'--{name}', allowed)}"
        for name, _, _ in pairs
        if name not in known
    ]
    if bad:
        raise BuildError("\n".join(bad))
    return {name: value for name, _, value in pairs}


def _texts(script: Script, instruction: Instruction, variables: Mapping[str, str]) -> dict[str, str]:
    texts = {}
    for heredoc in instruction.heredocs:
        text = chomp_heredoc_content(heredoc.content) if heredoc.chomp else heredoc.content
        texts[heredoc.name] = script.expand(text, variables, keep_quotes=True) if heredoc.expand else text
    return texts


def _not_here(name: str, source: str, from_stage: bool) -> str | None:
    """Returns what is wrong with a source whatever the context holds."""
    if name == "ADD" and _REMOTE.match(source):
        return f"ADD {source}: the local image has no network step; download it into the context and COPY it"
    if not from_stage and not source.startswith("/") and posixpath.normpath(source).split("/")[0] == "..":
        return f"{name} {source}: outside the build context; move it into the context, or build from the folder above"
    return None


def _found(sources: tuple[str, ...], files: Files, problems: list[str]) -> Iterator[str]:
    """Yields what the sources name; a pattern may name nothing as long as another source names something."""
    counts = []
    for source in sources:
        pattern = posixpath.normpath(posixpath.join("/", source)).lstrip("/")
        try:
            paths = find(files, pattern)
        except BuildError as error:
            problems.append(str(error))
            continue
        counts.append(len(paths))
        if not paths and not is_pattern(source):
            problems.append(_missing(files, source, pattern))
        yield from paths
    if counts and not any(counts) and all(map(is_pattern, sources)):
        problems.append(f"{' '.join(sources)}: no file matches" + _where(files))


def _missing(files: Files, source: str, path: str) -> str:
    if isinstance(files, Context) and files.leaves_out(path):
        return f"{source}: left out by .dockerignore; add a line !{path} there"
    folder, _, name = path.rpartition("/")
    place = resolve(files, folder)
    names = files.names(place) if place is not None and isinstance(files.node(place), Folder) else []
    near = difflib.get_close_matches(name, names, n=1)
    return f"{source}: no such file or folder{_where(files)}" + (
        f"; did you mean {join(folder, near[0])}?" if near else ""
    )


def _where(files: Files) -> str:
    if isinstance(files, Context):
        return f" in the build context {files.root}"
    return " in that stage; what its base image holds is not known without a container engine"


def _copy_one(request: Request, files: Files, source: str, tree: Tree, into_folder: bool, scratch: Path) -> list[str]:
    place = resolve(files, source)
    node = None if place is None else files.node(place)
    if request.unpack and isinstance(node, File) and isinstance(node.content, Path) and _is_archive(node.content):
        unpacked = _unpacked(node.content, source, scratch)
        return copy(Context(unpacked), "", tree, request.target)
    file_in_folder = into_folder and isinstance(node, File)
    target = join(request.target, posixpath.basename(source)) if file_in_folder else request.target
    return copy(files, source, tree, target, request.change_mode)


def _is_archive(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except OSError:
        return False


def _unpacked(archive: Path, source: str, scratch: Path) -> Path:
    """Unpacks an archive of the user; nothing in it gets outside of the new folder."""
    if not hasattr(tarfile, "data_filter"):
        raise BuildError(f"ADD {source}: unpacking needs Python 3.11.4 or later; update it, or unpack it yourself")
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
    except _BAD_ARCHIVE as error:
        raise BuildError(
            f"ADD {source}: cannot be unpacked: {error}; make the archive again, or COPY the files"
        ) from error
    return folder
