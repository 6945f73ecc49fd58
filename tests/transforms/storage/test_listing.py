"""Which files a glob matches: no name is another's, and what cannot be listed is said."""

from __future__ import annotations

import errno
import glob
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.input.formats import absolute
from transforms.input.inputs import list_files
from transforms.storage import files as storage
from transforms.storage.listing import is_glob, list_local, translate, unescape, version, why_not_gone

NAMES = [
    b"plain.txt", b"a[1].txt", b"a1.txt", b"star*.txt", b"starry.txt", b"what?.txt", b"whats.txt", b"back\\slash.txt",
    b"new\nline.txt", b"quo'te\".txt", b"-dash.txt", b"--input=x.txt", b"trailing.txt ", b" .txt", b"tab\t.txt",
    b"latin\xe9.txt", b"latin\xe8.txt", b"latin%E9.txt", b"a[[]1].txt", b"{a,b}.txt",
    b"~.txt", b"$HOME.txt", b"[!a].txt",
    b"[.txt", b"].txt", b"half\xed\xb2\x80.txt", b"caf\xc3\xa9.txt", b".hidden.txt", b"*.txt", b"a:b.txt",
    b"%2e%2e.txt",
]  # fmt: skip


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in NAMES:
        Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/" + name)).write_bytes(name)
    return tmp_path / "in"


def names(pattern: str) -> list[bytes]:
    return [os.fsencode(file.path.rpartition("/")[2]) for file in list_files(pattern).files]


def test_a_name_that_is_there_is_that_file_and_no_glob(there: Path) -> None:
    for name in NAMES:
        if name != b"*.txt":
            listed = list_files(f"{there}/{os.fsdecode(name)}")
            assert [os.fsencode(file.path) for file in listed.files] == [os.fsencode(there) + b"/" + name]
            assert listed.is_named


def test_a_directory_gives_all_that_is_in_it_whatever_its_name(there: Path) -> None:
    assert names(str(there)) == names(f"{there}/*") == names(f"{there}/") == sorted(NAMES, key=os.fsdecode)
    for name in ("d[1]", "d*", "d1", "back\\slash", "*", "line\nbreak", "d\udcff"):
        (there.parent / name).mkdir()
        (there.parent / name / "x.txt").write_text(name, errors="surrogateescape")
        for shape in (name, f"{name}/*.txt", f"{name}/x.txt") if name != "*" else (name,):
            (file,) = list_files(f"{there.parent}/{shape}").files
            assert file.path == f"{there.parent}/{name}/x.txt"


def test_a_file_called_star_does_not_stand_in_for_the_others(there: Path) -> None:
    assert set(names(f"{there}/*.txt")) == {name for name in NAMES if name.endswith(b".txt")}


def test_what_has_been_resolved_is_not_resolved_again(there: Path) -> None:
    pattern = absolute(f"{there}/a[1].txt")
    assert absolute(pattern) == pattern
    assert names(pattern) == [b"a[1].txt"], "though there is a file with the name of the escaped pattern"


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("/a/*.txt", ["/a/b.txt", "/a/.txt", "/a/b\\c\n.txt"], ["/a/b/c.txt", "/a/b.txt ", "/a/bxtxt"]),
        ("/a/**.txt", ["/a/b.txt", "/a/b/c\n/d.txt"], ["/b/a.txt"]),
        ("/a/?b", ["/a/xb", "/a/\nb", "/a/\udcffb"], ["/a//b", "/a/b"]),
        ("/a/[bc]", ["/a/b", "/a/c"], ["/a/d", "/a/bc"]),
        ("/a/[!bc]", ["/a/d", "/a/!"], ["/a/b", "/a//"]),
        ("/a/[]x]", ["/a/]", "/a/x"], ["/a/["]),
        ("/a/[a-c]", ["/a/b"], ["/a/-"]),
        ("/a/[^a]", ["/a/^", "/a/a"], ["/a/b"]),
        ("/a/[\\]", ["/a/\\"], ["/a/]"]),
        ("/a/[", ["/a/["], ["/a/"]),
        ("/a/[z-a]", ["/a/[z-a]"], ["/a/z"]),
        ("/a/[[]1].txt", ["/a/[1].txt"], ["/a/1.txt"]),
        ("/a/[*][?]", ["/a/*?"], ["/a/xy"]),
    ],
)
def test_globs(pattern: str, matching: list[str], others: list[str]) -> None:
    matches = translate(pattern).fullmatch
    assert all(map(matches, matching))
    assert not any(map(matches, others))


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20), st.text(max_size=20))
def test_an_escaped_name_matches_itself_alone(name: str, other: str) -> None:
    escaped = glob.escape(name)
    assert not is_glob(escaped)
    assert unescape(escaped) == name
    assert translate(escaped).fullmatch(name)
    assert bool(translate(escaped).fullmatch(other)) == (other == name)


def test_directories_between(tmp_path: Path) -> None:
    for name in ("a/x/1.txt", "b/x/2.txt", "b/y/3.txt", "b/x/deep/4.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "c").symlink_to("b")
    (tmp_path / "b" / "x" / "deep" / "round").symlink_to(tmp_path)

    def found(pattern: str) -> list[str]:
        return sorted(str(Path(file.path).relative_to(tmp_path)) for file in list_local(f"{tmp_path}/{pattern}").files)

    assert found("*/x/*.txt") == ["a/x/1.txt", "b/x/2.txt"]
    assert found("c/*/*.txt") == ["c/x/2.txt", "c/y/3.txt"], "a link that is spelled out is followed"
    assert found("**/*.txt") == ["a/x/1.txt", "b/x/2.txt", "b/x/deep/4.txt", "b/y/3.txt"]
    assert found("b/**4.txt") == ["b/x/deep/4.txt"]
    assert found("*/x/1.txt") == ["a/x/1.txt"]
    assert found("none/*.txt") == found("a/x/1.txt/*") == found("none.txt") == []
    assert list_local(f"{tmp_path}/*/x/*").links == [str(tmp_path / "c")]
    assert list_local(f"{tmp_path}/**").links == [f"{tmp_path}/{name}" for name in ("c", "b/x/deep/round")]


def test_what_is_no_file_is_listed_and_cannot_be_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.gz").symlink_to("/dev/zero")
    (tmp_path / "dangling.txt").symlink_to("nothing")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "directory.txt").mkdir()
    (tmp_path / "directory").mkdir()
    files = list_files(str(tmp_path)).files
    assert [Path(file.path).name for file in files] == [
        "dangling.txt", "loop.txt", "pipe.txt", "zero.gz",
    ]  # fmt: skip
    for file in files:
        assert file.version is None
        with pytest.raises(OSError, match=Path(file.path).name):
            storage.open_raw(file.path)


ERRORS = [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENOTDIR]


def break_directory(monkeypatch: pytest.MonkeyPatch, directory: Path, code: int) -> None:
    """Have the system give an error where a directory is listed; permissions would not keep root out."""
    scandir = os.scandir

    def broken(path: str | Path | int = ".") -> object:
        if not isinstance(path, int) and Path(path) == directory:
            raise OSError(code, os.strerror(code), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", broken)


@pytest.mark.parametrize("code", ERRORS)
def test_a_directory_that_cannot_be_listed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    for name in ("a", "b", "b/c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").touch()
    break_directory(monkeypatch, tmp_path / "b", code)
    for pattern in ("*/*.txt", "**/*.txt", "**.txt"):
        listed = list_files(f"{tmp_path}/{pattern}")
        assert [file.path for file in listed.files] == [f"{tmp_path}/a/x.txt"]
        assert listed.unlisted.keys() == {f"{tmp_path}/b"} or (code == errno.ENOTDIR)
    for pattern in ("b/*.txt", "b/**/*.txt", "b"):
        assert list_files(f"{tmp_path}/{pattern}").unlisted.keys() == {f"{tmp_path}/b"}
    assert why_not_gone(f"{tmp_path}/b/gone.txt")
    if code != errno.ENOTDIR:
        with pytest.raises(OSError, match=os.strerror(code)):
            storage.match([f"{tmp_path}/**"])


def test_what_is_gone(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x.txt").touch()
    (tmp_path / "mountpoint").mkdir()
    assert why_not_gone(f"{tmp_path}/full/y.txt") is None
    assert why_not_gone(f"{tmp_path}/full/deleted/directory/y.txt") is None
    assert "is there" in str(why_not_gone(f"{tmp_path}/full/x.txt"))
    assert "Not a directory" in str(why_not_gone(f"{tmp_path}/full/x.txt/y.txt"))
    for path in ("y.txt", "deep/y.txt"):
        assert f"{tmp_path}/mountpoint is empty" in str(why_not_gone(f"{tmp_path}/mountpoint/{path}"))
    (tmp_path / "full" / "link").symlink_to(tmp_path / "unmounted" / "disk")
    for path in ("y.txt", "deep/y.txt"):
        assert f"{tmp_path}/full/link is a link that leads nowhere" in str(why_not_gone(f"{tmp_path}/full/link/{path}"))


def test_a_version_is_another_after_any_change(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    os.utime(path, (5, 5))
    before, moment = path.stat(), path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == moment:  # the clock of the filesystem has a grain
        path.write_bytes(b"two")
        os.utime(path, (5, 5))
    assert (path.stat().st_size, path.stat().st_mtime) == (before.st_size, before.st_mtime)
    assert version(path.stat()) != version(before)
