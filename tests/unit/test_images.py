"""The local image: what a Dockerfile makes, what names it, and what a command line means inside of it."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from hpo_core.errors import BuildError
from hpo_core.images import LocalImage, build, build_local_image, find_local_image, images_root, localise

DOCKERFILE = """\
FROM python:3.12-slim
WORKDIR /app
ENV LEVEL=1
RUN pip install torch
COPY train.py run.sh ./
COPY data data
ENTRYPOINT ["python3", "/app/train.py"]
"""


def put(folder: Path, files: Mapping[str, str]) -> Path:
    """Writes files, making folders; a path with / at its end is an empty folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_text(text)
    return folder


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    put(
        folder,
        {"Dockerfile": DOCKERFILE, "train.py": "print(1)", "run.sh": "exec x", "data/a.csv": "1", "data/b/c": "2"},
    )
    (folder / "run.sh").chmod(0o755)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


def made(tmp_path: Path, text: str, files: Mapping[str, str] | None = None, **options: object) -> LocalImage:
    """Builds from a new folder."""
    folder = put(Path(tempfile.mkdtemp(dir=tmp_path)), {"Dockerfile": text, **(files or {})})
    return build_local_image(folder, tmp_path / "images", name="t", **options)  # type: ignore[arg-type]


def paths(image: LocalImage) -> set[str]:
    """Every path in the image, folders with / at their end."""
    found = image.rootfs.rglob("*")
    return {
        f"{path.relative_to(image.rootfs)}{'/' if path.is_dir() and not path.is_symlink() else ''}" for path in found
    }


def refused(tmp_path: Path, text: str, files: Mapping[str, str] | None = None, **options: object) -> list[str]:
    """The problems of a Dockerfile, one a line."""
    with pytest.raises(BuildError, match=r"(Dockerfile|ignore|build argument)") as caught:
        made(tmp_path, text, files, **options)
    return str(caught.value).split("\n")


# --- what is built


def test_the_image_holds_what_the_dockerfile_describes_and_tells_what_it_left_out(context: Path, images: Path) -> None:
    image = build_local_image(context, images)
    assert paths(image) == {
        "app/",
        "app/train.py",
        "app/run.sh",
        "app/data/",
        "app/data/a.csv",
        "app/data/b/",
        "app/data/b/c",
    }
    assert (image.rootfs / "app/data/b/c").read_text() == "2"
    assert os.access(image.rootfs / "app/run.sh", os.X_OK)
    assert (image.rootfs / "app/train.py").stat().st_mode & 0o777 == 0o644
    assert (image.env, image.workdir, image.cmd) == ({"LEVEL": "1"}, "/app", ())
    assert image.entrypoint == ("python3", "/app/train.py")
    assert image.skipped == ("Dockerfile:4: RUN pip install torch",)
    assert image.workdir_path == image.rootfs / "app"
    about = json.loads((image.rootfs.parent / "image.json").read_text())
    assert (about["base"], about["name"], about["digest"]) == ("python:3.12-slim", "context", image.digest)


def test_an_image_lies_under_its_digest_and_a_second_build_reuses_it(context: Path, images: Path) -> None:
    first = build_local_image(context, images)
    assert first.rootfs == images / first.digest.replace(":", "-") / "rootfs"
    inode = first.rootfs.stat().st_ino
    second = build_local_image(context, images)
    assert (first.already_built, second.already_built) == (False, True)
    assert second.rootfs.stat().st_ino == inode
    assert [each.name for each in images.iterdir()] == [first.digest.replace(":", "-")]


def _nothing(_: Path) -> None:
    return


def _age(context: Path) -> None:
    for path in [context, *context.rglob("*")]:
        os.utime(path, (1, 1))


def _narrow(context: Path) -> None:
    (context / "train.py").chmod(0o600)
    (context / "data").chmod(0o700)


@pytest.mark.parametrize(
    "change", [_nothing, _age, _narrow, lambda c: put(c, {"unused": "", "Dockerfile": "# hi\n" + DOCKERFILE})]
)
def test_the_digest_is_the_same_for_the_same_inputs_elsewhere(
    context: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    """Neither folder, store, name, time of change, bits for others, nor what is not copied counts."""
    digest = build_local_image(context, tmp_path / "images").digest
    elsewhere = shutil.copytree(context, tmp_path / "far" / "other")
    change(elsewhere)
    assert build_local_image(elsewhere, tmp_path / "images2", name="other").digest == digest


@pytest.mark.parametrize(
    "change",
    [
        lambda c: (c / "data/b/c").write_text("3"),
        lambda c: (c / "train.py").chmod(0o755),
        lambda c: (c / "data/b/c").rename(c / "data/b/d"),
        lambda c: (c / "data/empty").mkdir(),
        lambda c: (c / "data/link").symlink_to("a.csv"),
        lambda c: put(c, {"Dockerfile": DOCKERFILE.replace("LEVEL=1", "LEVEL=2")}),
        lambda c: put(c, {"Dockerfile": DOCKERFILE.replace("slim", "full")}),
        lambda c: put(c, {"Dockerfile": DOCKERFILE.replace("torch", "jax")}),
        lambda c: put(c, {"Dockerfile": DOCKERFILE + "CMD []\nWORKDIR /app/data\n"}),
        lambda c: put(c, {"Dockerfile": DOCKERFILE + "CMD x\n"}),
        lambda c: put(c, {"Dockerfile": DOCKERFILE.replace("COPY train", "COPY --chmod=600 train")}),
    ],
)
def test_any_change_of_the_inputs_makes_another_digest(
    context: Path, images: Path, change: Callable[[Path], object]
) -> None:
    before = build_local_image(context, images).digest
    change(context)
    assert build_local_image(context, images).digest != before


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("COPY a.py /x", {"x"}),
        ("COPY a.py /x/", {"x/", "x/a.py"}),
        ("COPY d /x", {"x/", "x/1.txt", "x/e/", "x/e/2.txt"}),
        ("COPY d/ /x/", {"x/", "x/1.txt", "x/e/", "x/e/2.txt"}),
        ("COPY d/e d/1.txt /x/", {"x/", "x/2.txt", "x/1.txt"}),
        ("COPY *.py ./", {"a.py", "b.py"}),
        ("COPY [^b]*.p? /", {"a.py"}),
        ("COPY d/*/2.txt d/none* /x/", {"x/", "x/2.txt"}),
        ("COPY /a.py /", {"a.py"}),
        ('COPY ["a b.txt", "/x y/"]', {"x y/", "x y/a b.txt"}),
        ('COPY "a b.txt" /', {"a b.txt"}),
        ("WORKDIR /w\nWORKDIR v\nCOPY a.py b.py .", {"w/", "w/v/", "w/v/a.py", "w/v/b.py"}),
        ("WORKDIR /w\nCOPY a.py /w", {"w/", "w/a.py"}),
        ("WORKDIR /w/v\nCOPY a.py ../z", {"w/", "w/v/", "w/z"}),
        ("ENV D=/x\nCOPY a.py $D/${M:-m}.py", {"x/", "x/m.py"}),
        ("ADD --chown=u:g a.py /x/", {"x/", "x/a.py"}),
        ("copy --link \\\n  # a comment\n  a.py \\\n\n  /x/", {"x/", "x/a.py"}),
        ("COPY link /x", {"x"}),
        ("COPY dlink/e /x/", {"x/", "x/2.txt"}),
    ],
)
def test_copy_puts_files_where_docker_would(tmp_path: Path, lines: str, expected: set[str]) -> None:
    files = {"a.py": "", "b.py": "", "a b.txt": "", "d/1.txt": "", "d/e/2.txt": "", "Dockerfile": f"FROM x\n{lines}\n"}
    folder = put(tmp_path / "context", files)
    (folder / "link").symlink_to("a.py")
    (folder / "dlink").symlink_to("d")
    assert paths(build_local_image(folder, tmp_path / "images")) == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("755", 0o755),
        ("0600", 0o600),
        ("4711", 0o711),
        ("+x", 0o755),
        ("u=rwX,go=rX", 0o644),
        ("go-r", 0o600),
        ("a=r", 0o444),
    ],
)
def test_chmod_sets_the_permission_bits(tmp_path: Path, mode: str, expected: int) -> None:
    image = made(tmp_path, f"FROM x\nCOPY --chmod={mode} a /a", {"a": ""})
    assert (image.rootfs / "a").stat().st_mode & 0o7777 == expected


def test_a_later_copy_replaces_the_file_of_an_earlier_one(tmp_path: Path) -> None:
    image = made(tmp_path, "FROM x\nCOPY a /f\nCOPY b /f", {"a": "old", "b": "new"})
    assert (image.rootfs / "f").read_text() == "new"


def test_a_heredoc_becomes_a_file_and_one_of_run_is_skipped_whole(tmp_path: Path) -> None:
    text = "FROM x\nARG V=7\nRUN <<EOF\nCOPY nothing /\nEOF\nCOPY <<A <<-'B' /etc/\nv=$V \"q\"\nA\n\tv=$V\nB\n"
    image = made(tmp_path, text)
    assert (image.rootfs / "etc/A").read_text() == 'v=7 "q"\n'
    assert (image.rootfs / "etc/B").read_text() == "v=$V\n"
    assert image.skipped == ("Dockerfile:3: RUN <<EOF\nCOPY nothing /\nEOF",)


def test_instructions_without_a_meaning_for_files_are_ignored_and_user_is_told(tmp_path: Path) -> None:
    text = (
        "FROM x\nEXPOSE 80\nLABEL a=b\nHEALTHCHECK NONE\nVOLUME /v\nSTOPSIGNAL 9\nUSER me\nMAINTAINER I\nONBUILD RUN x"
    )
    image = made(tmp_path, text)
    assert (paths(image), image.skipped) == (set(), ("Dockerfile:7: USER me",))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("ENV K=v L='a b' M=\"c d\"", {"K": "v", "L": "a b", "M": "c d"}),
        ("ENV K a  b", {"K": "a  b"}),
        ("ENV A=1\nENV A=2 B=$A", {"A": "2", "B": "1"}),
        (
            "ENV A=1\nENV B=${A}x C=${N:-d} D=${A:+alt} E=${N:+alt} F=$N",
            {"A": "1", "B": "1x", "C": "d", "D": "alt", "E": "", "F": ""},
        ),
        ("ENV A=\\$B C='$B'", {"A": "$B", "C": "$B"}),
        ("ARG X=1\nENV A=$X", {"A": "1"}),
        ("ARG X=1\nENV X=2\nENV A=$X", {"X": "2", "A": "2"}),
        ("ARG G\nENV A=$G", {"A": "top"}),
        ("ENV A=$G", {"A": ""}),
        ("ARG GIVEN=1\nENV A=$GIVEN", {"A": "told"}),
        ("ENV PATH=/opt/bin:$PATH", {"PATH": "/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}),
        ("ENV A=1 \\\n # no\n  B=2", {"A": "1", "B": "2"}),
    ],
)
def test_variables_are_replaced_as_docker_does(tmp_path: Path, lines: str, expected: dict[str, str]) -> None:
    text = f"ARG G=top\nARG GIVEN\nFROM x:$GIVEN\n{lines}\n"
    assert made(tmp_path, text, build_args={"GIVEN": "told"}).env == expected


def test_the_escape_character_can_be_a_backtick(tmp_path: Path) -> None:
    assert made(tmp_path, "# escape=`\nFROM x\nENV A=a\\b `\n  C=`$d\n").env == {"A": "a\\b", "C": "$d"}


@pytest.mark.parametrize(
    ("lines", "entrypoint", "cmd"),
    [
        ('ENTRYPOINT ["a", "$B"]\nCMD ["c"]', ("a", "$B"), ("c",)),
        ('CMD ["c"]\nENTRYPOINT ["a"]', ("a",), ("c",)),
        ("CMD python  x.py --lr $LR", (), ("/bin/sh", "-c", "python  x.py --lr $LR")),
        ("CMD [ -f /x ] && y", (), ("/bin/sh", "-c", "[ -f /x ] && y")),
        ('SHELL ["/bin/bash", "-lc"]\nENTRYPOINT a', ("/bin/bash", "-lc", "a"), ()),
        ("CMD a\nCMD []", (), ()),
    ],
)
def test_entrypoint_and_cmd_keep_their_form(
    tmp_path: Path, lines: str, entrypoint: tuple[str, ...], cmd: tuple[str, ...]
) -> None:
    image = made(tmp_path, f"FROM x\n{lines}\n")
    assert (image.entrypoint, image.cmd) == (entrypoint, cmd)


# --- stages


def test_the_last_stage_may_copy_from_a_stage_without_run(tmp_path: Path) -> None:
    text = "FROM x AS Data\nWORKDIR /d\nCOPY a sub/a\nFROM y\nCOPY --from=data /d /e\nCOPY --from=0 /d/sub/* /f/\n"
    assert paths(made(tmp_path, text, {"a": ""})) == {"e/", "e/sub/", "e/sub/a", "f/", "f/a"}


def test_a_stage_that_begins_with_another_one_inherits_it_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    text = (
        "FROM x AS one\nWORKDIR /w\nENV A=1\nCOPY a .\n"
        "FROM one AS two\nENV A=2\nCOPY a b\n"
        "FROM one\nENV B=$A\nCOPY --from=two /w/b /c\n"
    )
    image = made(tmp_path, text, {"a": ""})
    assert (paths(image), image.env, image.workdir) == ({"w/", "w/a", "c"}, {"A": "1", "B": "1"}, "/w")


def test_the_run_lines_of_the_stages_below_the_last_one_are_told_too(tmp_path: Path) -> None:
    image = made(tmp_path, "FROM x AS one\nRUN a\nFROM one\nRUN b\n")
    assert image.skipped == ("Dockerfile:2: RUN a", "Dockerfile:4: RUN b")


def test_an_entrypoint_drops_the_inherited_cmd_only(tmp_path: Path) -> None:
    image = made(tmp_path, 'FROM x AS one\nCMD ["c"]\nFROM one\nENTRYPOINT ["e"]\n')
    assert (image.entrypoint, image.cmd) == (("e",), ())


def test_a_stage_that_the_last_one_does_not_need_is_not_looked_at(tmp_path: Path) -> None:
    image = made(tmp_path, "FROM x AS test\nRUN pytest\nCOPY missing /\nFROM y\nCOPY a /\n", {"a": ""})
    assert (paths(image), image.skipped) == ({"a"}, ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "FROM x AS b\nRUN make\nFROM y\nCOPY --from=b /o /",
            r"Dockerfile:4: COPY --from=b: that stage has RUN \(line 2\), which needs .*docker",
        ),
        (
            "FROM x\nCOPY --from=example.com/a/uv:1 /uv /",
            "Dockerfile:2: COPY --from=example.com/a/uv:1: no earlier stage, .* engine",
        ),
        ("FROM x AS build\nFROM y\nCOPY --from=biuld /a /", "Dockerfile:3: .*did you mean build?"),
        ("FROM x AS b\nFROM y\nCOPY --from=b /usr/lib /l", "Dockerfile:3: /usr/lib: no such file .* base image"),
        ("FROM x AS b\nCOPY --from=b /a /", "Dockerfile:2: COPY --from=b: no earlier stage"),
    ],
)
def test_what_only_a_container_engine_could_copy_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        made(tmp_path, text)


# --- archives and links


def archive(path: Path, members: Mapping[str, str], link: tuple[str, str] | None = None) -> None:
    with tarfile.open(path, "w:gz") as opened:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text), 0o755
            opened.addfile(member, io.BytesIO(text.encode()))
        if link:
            member = tarfile.TarInfo(link[0])
            member.type, member.linkname = tarfile.SYMTYPE, link[1]
            opened.addfile(member)


def test_add_unpacks_an_archive_and_copy_does_not(tmp_path: Path) -> None:
    folder = put(tmp_path / "c", {"Dockerfile": "FROM x\nADD d.tgz e.txt /data/\nCOPY d.tgz /\n", "e.txt": ""})
    archive(folder / "d.tgz", {"s/run": "x"})
    image = build_local_image(folder, tmp_path / "images")
    assert paths(image) == {"data/", "data/s/", "data/s/run", "data/e.txt", "d.tgz"}
    assert os.access(image.rootfs / "data/s/run", os.X_OK)


@pytest.mark.parametrize(("members", "link"), [({"../evil": "x"}, None), ({}, ("l", "../../etc")), ({}, ("l", "/etc"))])
def test_an_archive_cannot_reach_outside(
    tmp_path: Path, images: Path, members: dict[str, str], link: tuple[str, str] | None
) -> None:
    folder = put(tmp_path / "c", {"Dockerfile": "FROM x\nADD d.tgz /\n"})
    archive(folder / "d.tgz", members, link)
    with pytest.raises(BuildError, match=r"Dockerfile:2: ADD d.tgz: cannot be unpacked"):
        build_local_image(folder, images)
    assert list(images.iterdir()) == []


def test_a_broken_archive_is_refused(tmp_path: Path) -> None:
    folder = put(tmp_path / "c", {"Dockerfile": "FROM x\nADD d.tgz /\n"})
    archive(folder / "d.tgz", {"a": "".join(map(str, range(20000)))})
    whole = (folder / "d.tgz").read_bytes()
    (folder / "d.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BuildError, match=r"Dockerfile:2: ADD d.tgz: cannot be unpacked"):
        build_local_image(folder, tmp_path / "images")


def test_an_archive_that_misses_a_member_is_refused(tmp_path: Path) -> None:
    folder = put(tmp_path / "c", {"Dockerfile": "FROM x\nADD d.tar /\n"})
    with tarfile.open(folder / "d.tar", "w") as opened:
        member = tarfile.TarInfo("hard")
        member.type, member.linkname = tarfile.LNKTYPE, "missing"
        opened.addfile(member)
    with pytest.raises(BuildError, match=r"Dockerfile:2: ADD d.tar: cannot be unpacked"):
        build_local_image(folder, tmp_path / "images")


def test_a_symlink_that_stays_inside_is_kept(tmp_path: Path, images: Path) -> None:
    folder = put(tmp_path / "c", {"Dockerfile": "FROM x\nCOPY . /app\n", "d/a": "1"})
    (folder / "d/up").symlink_to("../d/a")
    image = build_local_image(folder, images)
    assert (image.rootfs / "app/d/up").readlink() == Path("../d/a")
    assert (image.rootfs / "app/d/up").read_text() == "1"


@pytest.mark.parametrize("target", ["/etc/passwd", "../../x", "loop"])
def test_a_symlink_that_leaves_the_context_or_goes_in_circles_is_refused(tmp_path: Path, target: str) -> None:
    folder = put(tmp_path / "c", {"Dockerfile": "FROM x\nCOPY d /app/d/e/f\n", "d/a": ""})
    (folder / "d/loop").symlink_to(target)
    with pytest.raises(BuildError, match=rf"Dockerfile:2: the symlink d/loop -> {target} leads out"):
        build_local_image(folder, tmp_path / "images")


def test_a_symlink_that_would_leave_the_image_where_it_was_put_is_refused(tmp_path: Path) -> None:
    folder = put(tmp_path / "c", {"Dockerfile": "FROM x\nCOPY d /\n", "a": "", "d/": ""})
    (folder / "d/up").symlink_to("../a")
    with pytest.raises(BuildError, match="Dockerfile: the symlink /up leads out of the image"):
        build_local_image(folder, tmp_path / "images")


# --- .dockerignore


@pytest.mark.parametrize(
    ("ignore", "expected"),
    [
        ("*.pyc\n", {"a.py", "d/", "d/b.pyc", "d/e/", "d/e/c.txt"}),
        ("**/*.pyc\n# a comment\n\n", {"a.py", "d/", "d/e/", "d/e/c.txt"}),
        ("d\n", {"a.py", "x.pyc"}),
        ("/d/*\n!d/e/c.txt\n", {"a.py", "x.pyc", "d/", "d/e/", "d/e/c.txt"}),
        ("*\n!a.py\n", {"a.py"}),
        ("*\n!d/none\n", set()),
        ("!a.py\na.*\n", {"x.pyc", "d/", "d/b.pyc", "d/e/", "d/e/c.txt"}),
    ],
)
def test_dockerignore_leaves_out_what_docker_would(tmp_path: Path, ignore: str, expected: set[str]) -> None:
    files = {
        "a.py": "",
        "x.pyc": "",
        "d/b.pyc": "",
        "d/e/c.txt": "",
        ".dockerignore": ignore + "Dockerfile\n.dockerignore\n",
    }
    assert paths(made(tmp_path, "FROM x\nCOPY . /\n", files)) == expected


def test_the_ignore_file_of_the_dockerfile_wins(tmp_path: Path) -> None:
    files = {"T": "FROM x\nCOPY a b /", "T.dockerignore": "none", ".dockerignore": "a", "a": "", "b": ""}
    assert paths(made(tmp_path, "FROM x\n", files, dockerfile="T")) == {"a", "b"}


def test_a_copy_of_what_is_ignored_tells_the_line_to_add(tmp_path: Path) -> None:
    problems = refused(tmp_path, "FROM x\nCOPY d/a /\n", {"d/a": "", ".dockerignore": "d\n"})
    assert problems == ["Dockerfile:2: d/a: left out by .dockerignore; add a line !d/a there"]


def test_a_bad_pattern_is_told_with_its_line(tmp_path: Path) -> None:
    assert refused(tmp_path, "FROM x\n", {".dockerignore": "a\n[b\n"})[0].startswith(
        ".dockerignore:2: Invalid ignore pattern '[b'"
    )


def test_images_and_records_inside_of_the_context_are_no_part_of_it(context: Path) -> None:
    put(context, {"Dockerfile": "FROM x\nCOPY . /app\n"})
    first = build(context, store_root=context / ".hpo")
    put(context, {".hpo/default/mnist/experiment.yaml": "changed"})
    assert build(context, store_root=context / ".hpo").digest == first.digest
    assert "app/.hpo/" not in paths(first)


def test_the_images_folder_inside_of_the_context_is_no_part_of_it(context: Path) -> None:
    put(context, {"Dockerfile": "FROM x\nCOPY . /app\n", ".dockerignore": "images\n!images/**/c"})
    first = build_local_image(context, context / "images")
    assert build_local_image(context, context / "images").already_built
    assert "app/images/" not in paths(first)


# --- mistakes


def test_a_dockerfile_with_five_mistakes_lists_five_problems(tmp_path: Path) -> None:
    text = 'FROM\nCOPPY a /\nCOPY trian.py /app/\nCOPY ../a /app/\nCMD ["python", "a",]\n'
    problems = refused(tmp_path, text, {"train.py": ""})
    assert [problem.split(":")[:2] for problem in problems] == [["Dockerfile", str(line)] for line in range(1, 6)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^Dockerfile: no FROM"),
        ("COPY a /\n", r"^Dockerfile:1: no FROM"),
        ("ARG V\nFROM $V\n", r"Dockerfile:2: FROM \$V: the variable has no value"),
        ("FROM a b\n", r"Dockerfile:1: FROM a b is not understood"),
        ("FROM x\nWROKDIR /a\n", "Dockerfile:2: unknown instruction WROKDIR; did you mean WORKDIR?"),
        ("FROM x\nRUN a &&\n  pip b\n", "Dockerfile:3: unknown instruction pip; is a backslash missing"),
        ("FROM x\nCOPY trian.py /\n", "Dockerfile:2: trian.py: no such file .*did you mean train.py?"),
        ("FROM x\nCOPY *.md *.rst /\n", r"Dockerfile:2: \*.md \*.rst: no file matches"),
        ("FROM x\nCOPY d/../../a /\n", "Dockerfile:2: COPY d/../../a: outside the build context"),
        ("FROM x\nCOPY train.py d /app\n", "Dockerfile:2: several sources need a folder .* /app/ with a slash"),
        ("FROM x\nCOPY train.py\n", "Dockerfile:2: COPY needs at least one source and a target"),
        ("FROM x\nCOPY --chmod=rw train.py /\n", "Dockerfile:2: --chmod=rw is no file mode"),
        ("FROM x\nCOPY --form=a train.py /\n", "Dockerfile:2: COPY --form is not supported .* did you mean --from?"),
        ("FROM x\nCOPY train.py /a\nCOPY train.py /a/b\n", "Dockerfile:3: /a is a file in the image already"),
        ("FROM x\nCOPY d /a\nCOPY train.py /t/a\nCOPY d /t\n", "Dockerfile:4: /t/a is a folder|/t/a is a file"),
        ("FROM x\nCOPY ['train.py', '/']\n", "Dockerfile:2: COPY .* is not valid JSON"),
        ("FROM x\nSHELL bash\n", "Dockerfile:2: SHELL bash is not valid JSON"),
        ("FROM x\nENV A\n", "Dockerfile:2: ENV must have two arguments"),
        ("FROM x\nENV A=${B!c}\n", "Dockerfile:2: .*unsupported modifier"),
        ('FROM x\nENV A="${B:?is needed}"\n', "Dockerfile:2: .*B: is needed"),
        ("FROM x\nWORKDIR\n", "Dockerfile:2: WORKDIR needs a path"),
        ("FROM x\nCOPY <<E /a\nb\n", "Dockerfile:2: unterminated heredoc"),
        ("FROM x\nADD https://a/b /c\n", "Dockerfile:2: ADD https://a/b: the local image has no network step"),
        ("# escape=x\nFROM x\n", "Dockerfile:1: invalid escape token"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_the_next_step(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        made(tmp_path, text, {"train.py": "", "d/a/x": ""})


def test_what_stands_above_an_endless_heredoc_is_still_checked(tmp_path: Path) -> None:
    problems = refused(tmp_path, "FROM x\nCOPY none /\nRUN <<EOF\nCOPY text /\n")
    assert [problem.split(": ")[0] for problem in problems] == ["Dockerfile:2", "Dockerfile:3"]


def test_a_build_argument_that_nothing_declares_is_a_problem(tmp_path: Path) -> None:
    problems = refused(tmp_path, "FROM x\nARG VERSION\n", build_args={"VERSOIN": "1", "http_proxy": "p"})
    assert problems == ["build argument VERSOIN: no ARG VERSOIN in Dockerfile; did you mean VERSION?"]


def test_a_missing_folder_or_dockerfile_is_told(tmp_path: Path, images: Path) -> None:
    with pytest.raises(BuildError, match="none: nothing there, expected the folder"):
        build_local_image(tmp_path / "none", images)
    folder = put(tmp_path / "c", {"mnist.Dockerfile": "FROM x"})
    with pytest.raises(BuildError, match=r"Dockerfile: no such file; there are mnist\.Dockerfile"):
        build_local_image(folder, images)
    (folder / "Dockerfile").write_bytes(b"FROM \xff")
    with pytest.raises(BuildError, match=r"Dockerfile: cannot be read: .*utf-8"):
        build_local_image(folder, images)


def test_what_is_no_file_is_a_problem_and_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(tmp_path / "c", {"Dockerfile": "FROM x\nCOPY . /\n"})
    os.mkfifo(folder / "pipe")
    monkeypatch.chdir(folder)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(BuildError, match=r"(?s)2: .*/pipe is neither .*2: .*/socket is neither"):
            build_local_image(folder, tmp_path / "images")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that an unprivileged user can use too."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_a_file_that_may_not_be_read_is_a_problem_of_its_line(open_folder: Path) -> None:
    folder = put(open_folder / "c", {"Dockerfile": "FROM x\nCOPY a b /\nCOPY ./d /\n", "a": "", "b": "", "d/x": ""})
    (folder / "b").chmod(0)
    (folder / "d").chmod(0)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        with pytest.raises(BuildError, match=r"(?s)Dockerfile:2: cannot read .*/b: .*Dockerfile:3: cannot read .*/d: "):
            build_local_image(folder, open_folder / "images")
    finally:
        if root:
            os.seteuid(0)
        (folder / "d").chmod(0o755)


# --- many at once, crashes, full disks

BUILD = """
import json, resource, signal, sys
from pathlib import Path
from hpo_core.errors import BuildError
from hpo_core.images import build_local_image
context, images, on_limit = sys.argv[1:]
if on_limit != "none":
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if on_limit == "die" else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    image = build_local_image(Path(context), Path(images))
    print(json.dumps([image.reference, image.already_built]))
except BuildError as error:
    sys.exit(f"BuildError: {error}")
"""


def builder(context: Path, images: Path, on_limit: str = "none") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(context), str(images), on_limit]
    root = str(Path(__file__).parents[2])
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=root, env={**os.environ, "PYTHONPATH": root}, stdout=pipe, stderr=pipe, text=True
    )


def test_of_builders_at_once_all_succeed_and_one_has_built(context: Path, images: Path) -> None:
    put(context, {f"data/many/{number}": str(number) for number in range(500)})
    builders = [builder(context, images) for _ in range(3)]
    outputs = [each.communicate(timeout=60) for each in builders]
    assert [each.returncode for each in builders] == [0, 0, 0], outputs
    references, reused = zip(*(json.loads(out) for out, _ in outputs), strict=True)
    assert len(set(references)) == 1
    assert sorted(reused) == [False, True, True]
    image = find_local_image(references[0], images)
    assert image is not None
    assert len(list((image.rootfs / "app/data/many").iterdir())) == 500
    assert [each.name for each in images.iterdir()] == [image.rootfs.parent.name]


def test_a_builder_killed_while_writing_leaves_no_image_and_the_next_one_succeeds(context: Path, images: Path) -> None:
    put(context, {"data/z.bin": "x" * 10_000})
    killed = builder(context, images, "die")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGXFSZ
    leftovers = [each.name for each in images.iterdir()]
    assert len(leftovers) == 1
    assert not leftovers[0].startswith("sha256-")
    assert list(images.glob("*/image/rootfs/app/data"))
    assert not build_local_image(context, images).already_built


def test_a_write_that_fails_is_told_with_the_next_step_and_leaves_nothing(context: Path, images: Path) -> None:
    put(context, {"data/z.bin": "x" * 10_000})
    failed = builder(context, images, "error")
    _, errors = failed.communicate(timeout=60)
    assert (failed.returncode, list(images.iterdir())) == (1, [])
    assert f"BuildError: cannot write the image below {images}" in errors
    assert "free some space" in errors


def test_a_place_where_nothing_can_be_written_is_told(context: Path, tmp_path: Path) -> None:
    put(tmp_path, {"file": ""})
    with pytest.raises(BuildError, match=r"cannot write the image below .*/file/images: .*allow writing there"):
        build_local_image(context, tmp_path / "file" / "images")


def test_leftovers_of_long_ago_are_removed_and_young_ones_are_not(context: Path, images: Path) -> None:
    put(images, {".building-old/image/rootfs/a": "", ".building-young/image/rootfs/a": ""})
    os.utime(images / ".building-old", (1, 1))
    image = build_local_image(context, images)
    assert sorted(each.name for each in images.iterdir()) == [".building-young", image.rootfs.parent.name]


def test_a_file_that_changes_during_the_build_makes_no_image(tmp_path: Path, images: Path) -> None:
    folder = put(tmp_path / "c", {"Dockerfile": "FROM x\nCOPY log /\n", "log": "x" * 40_000_000})
    done = threading.Event()

    def write() -> None:
        with (folder / "log").open("a") as log:
            while not done.is_set():
                log.write("x")
                log.flush()
                time.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(BuildError, match=r"log changed while the image was built"):
            build_local_image(folder, images)
    finally:
        done.set()
        writer.join()
    assert list(images.iterdir()) == []


# --- names and references


@pytest.mark.parametrize(
    ("folder", "name", "expected"),
    [
        ("mnist", "", "mnist"),
        ("My Trainer (2)", "", "my-trainer-2"),
        ("_a__b..c_", "", "a-b-c"),
        ("été", "", "t"),
        ("___", "", "trainer"),
        ("x", "team/mnist_2.1", "team/mnist_2.1"),
    ],
)
def test_a_reference_names_the_image_and_its_digest(tmp_path: Path, folder: str, name: str, expected: str) -> None:
    image = build_local_image(put(tmp_path / folder, {"Dockerfile": "FROM x"}), tmp_path / "images", name=name)
    assert image.reference == f"local/{expected}@{image.digest}"
    assert find_local_image(image.reference, tmp_path / "images") is not None


@pytest.mark.parametrize("name", ["Mnist", "mnist:v1", "a b", "-a", "a//b", "x" * 101])
def test_a_name_that_no_registry_takes_is_refused_with_one_that_is(tmp_path: Path, name: str) -> None:
    with pytest.raises(BuildError, match=r"image name .* is not valid; allowed are .* for example [a-z-]+$"):
        build_local_image(put(tmp_path / "c", {"Dockerfile": "FROM x"}), tmp_path / "images", name=name)


def test_a_built_image_is_found_by_its_reference(context: Path, images: Path) -> None:
    image = build_local_image(context, images)
    found = find_local_image(image.reference, images)
    assert found is not None
    assert found.already_built
    assert {**vars(found), "already_built": False} == vars(image)


@pytest.mark.parametrize(
    "reference", ["python:3.12", "example.com/local/a", "local/a:latest", f"a/local/b@sha256:{'0' * 64}", ""]
)
def test_the_reference_of_a_registry_image_is_none_of_ours(images: Path, reference: str) -> None:
    assert find_local_image(reference, images) is None


def test_an_image_of_another_machine_is_told_with_the_next_step(images: Path) -> None:
    with pytest.raises(BuildError, match=r"local/a@sha256:0{64} is not in .*/images; .*`hpo build DIR`"):
        find_local_image(f"local/a@sha256:{'0' * 64}", images)


def test_a_reference_that_was_cut_is_told(images: Path) -> None:
    with pytest.raises(BuildError, match=r"'local/a@sha256:0123' is cut off or changed"):
        find_local_image("local/a@sha256:0123", images)


@pytest.mark.parametrize("damage", ["image.json", "rootfs"])
def test_a_damaged_image_is_told_and_never_used(context: Path, images: Path, damage: str) -> None:
    image = build_local_image(context, images)
    (image.rootfs.parent / damage).rename(images / "away")
    with pytest.raises(BuildError, match=rf"is damaged: {damage}.*delete that folder"):
        find_local_image(image.reference, images)
    with pytest.raises(BuildError, match=rf"is damaged: {damage}.*delete that folder"):
        build_local_image(context, images)


# --- paths inside the image


@pytest.mark.parametrize(
    ("item", "mapped"),
    [
        ("/app/train.py", "{root}/app/train.py"),
        ("/app/data/", "{root}/app/data/"),
        ("--data=/app/data", "--data={root}/app/data"),
        ("--x=/app/odd=name", "--x={root}/app/odd=name"),
        ("/app/odd=name", "{root}/app/odd=name"),
        ("/app/../app/train.py", "{root}/app/../app/train.py"),
        ("/app/inner", "{root}/app/inner"),
        ("python3", "python3"),
        ("app/train.py", "app/train.py"),
        ("./train.py", "./train.py"),
        ("/usr/bin/python3", "/usr/bin/python3"),
        ("/app/missing", "/app/missing"),
        ("--data=/app/missing", "--data=/app/missing"),
        ("s3://app/data", "s3://app/data"),
        ("file:///app/data", "file:///app/data"),
        ("--a=b=/app/data", "--a=b=/app/data"),
        ("/app/data:/app", "/app/data:/app"),
        ("cat /app/train.py", "cat /app/train.py"),
        ("/", "/"),
        ("--sep=/", "--sep=/"),
        ("", ""),
        ("/app/../../../etc", "/app/../../../etc"),
        ("/app/outer", "/app/outer"),
        ("/app/outer/hostname", "/app/outer/hostname"),
        ("/app/loop", "/app/loop"),
        ("/app/\0", "/app/\0"),
        ("/" + "a" * 5000, "/" + "a" * 5000),
    ],
)
def test_exactly_the_paths_that_exist_in_the_image_are_mapped(
    context: Path, images: Path, item: str, mapped: str
) -> None:
    image = build_local_image(context, images)
    app = image.rootfs / "app"
    (app / "odd=name").touch()
    (app / "inner").symlink_to("data")
    (app / "outer").symlink_to("/etc")
    (app / "loop").symlink_to("loop")
    argv, env = localise(image, ["python3", item], {"ITEM": item})
    assert (argv, env["ITEM"]) == (["python3", mapped.format(root=image.rootfs)], mapped.format(root=image.rootfs))


def test_the_image_s_env_is_a_default_below_the_template_s(context: Path, images: Path) -> None:
    put(context, {"Dockerfile": DOCKERFILE + "ENV DATA=/app/data OTHER=/none\n"})
    image = build_local_image(context, images)
    _, env = localise(image, [], {"LEVEL": "9", "MINE": "x"})
    assert env == {"LEVEL": "9", "MINE": "x", "DATA": f"{image.rootfs}/app/data", "OTHER": "/none"}


def test_a_trial_runs_in_the_image(context: Path, images: Path) -> None:
    """The example of the whole: the command of a cluster, in the image's working directory, reads the image's data."""
    put(
        context,
        {"train.py": "import sys, pathlib; print(pathlib.Path(sys.argv[1][7:]).read_text(), open('data/b/c').read())"},
    )
    image = build(context, store_root=images)
    assert image.rootfs.is_relative_to(images_root(images))
    argv, env = localise(image, [sys.executable, "/app/train.py", "--data=/app/data/a.csv"], {})
    done = subprocess.run(argv, cwd=image.workdir_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "2"]
