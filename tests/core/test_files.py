import os
import pty
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchmoji_core.files import NotRegularError, name_as_text, name_from_text, open_regular

NAMES = st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name)


def test_files_and_links_to_them_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    with open_regular(str(tmp_path / "link")) as file:
        assert file.read() == b"content"
        assert os.get_blocking(file.fileno())
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"content"


def test_what_a_read_might_wait_for_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "directory").mkdir()
    for name, kind in (("pipe", "a named pipe"), ("socket", "a socket"), ("zero", "a device"), ("directory", "a dir")):
        with pytest.raises(NotRegularError, match=kind):
            open_regular(tmp_path / name)


def test_a_terminal_is_refused() -> None:
    ours, theirs = pty.openpty()
    try:
        with pytest.raises(NotRegularError, match="a device"):
            open_regular(os.ttyname(theirs))
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_pipe_that_takes_the_place_of_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    before = os.stat(tmp_path / "file")  # noqa: PTH116
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", lambda path: before)
        with pytest.raises(NotRegularError, match="a named pipe"):
            open_regular(tmp_path / "pipe")


def test_links_that_lead_nowhere_are_errors(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("dangling", "loop"):
        with pytest.raises(OSError, match=name):
            open_regular(tmp_path / name)


@given(NAMES, NAMES)
@settings(deadline=None)
def test_two_names_are_never_one_text(first: bytes, second: bytes) -> None:
    names = [f"/{name.decode('utf-8', 'surrogateescape')}" for name in (first, second)]
    texts = [name_as_text(name) for name in names]
    assert [name_from_text(text) for text in texts] == names
    assert (texts[0] == texts[1]) == (names[0] == names[1])
    for name, text in zip(names, texts, strict=True):
        text.encode()
        if max(name) < "\udc80":
            assert text == name


def test_a_name_that_looks_like_an_escaped_one_is_another() -> None:
    assert name_as_text("/a%FF") == "/a%FF"
    assert name_as_text("/a\udcff") == "file:///a%FF"
    assert name_as_text("file:///a%FF") not in ("file:///a%FF", "/a%FF")
