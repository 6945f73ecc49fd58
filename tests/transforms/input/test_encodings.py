"""Encodings that are given: what their names mean for a file, and which are refused with a remedy."""

from __future__ import annotations

import io

import pytest

from tests.transforms.input.records import values
from torchmoji_core.errors import InputError
from transforms.input.formats import read_records
from transforms.input.forms import FormOptions
from transforms.input.recognition import recognize


@pytest.mark.parametrize("given", ["utf-16", "UTF16", "utf_32"])
@pytest.mark.parametrize("order", ["", "-le", "-be"])
def test_the_order_of_bytes_is_that_of_the_mark_or_else_of_the_nulls(given: str, order: str) -> None:
    options = FormOptions(encoding=given)
    file = io.BytesIO("so happy\nso sad\n".encode(f"{options.encoding}{order}"))
    (form,) = recognize(file, "x.txt", options)
    assert values(list(read_records(file, form))) == ["so happy", "so sad"]


@pytest.mark.parametrize("content", ["\u3059\u3054\u3044".encode("utf-16-le"), b"so happy"])
def test_an_order_of_bytes_that_nothing_tells_is_asked_for(content: bytes) -> None:
    with pytest.raises(InputError, match=r"--encoding utf-16 needs a byte order mark.*utf-16-le or"):
        recognize(io.BytesIO(content), "x.txt", FormOptions(encoding="utf-16"))
    (form,) = recognize(io.BytesIO(b""), "x.txt", FormOptions(encoding="utf-16"))
    assert list(read_records(io.BytesIO(b""), form)) == []


@pytest.mark.parametrize("name", ["idna", "punycode", "undefined", "base64", "klingon"])
def test_what_is_no_encoding_of_texts_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"--encoding '?{name}'? is unknown; give the name of one that Python has"):
        FormOptions(encoding=name)
