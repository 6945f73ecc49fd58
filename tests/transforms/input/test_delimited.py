"""CSV and TSV as people have them: no row is another's, and none is lost without a word."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchmoji_core.errors import InputError
from transforms.input.delimited import Dialect, recognize_dialect
from transforms.input.formats import read_records
from transforms.input.forms import Form, FormOptions
from transforms.input.raw_records import Damage, Record
from transforms.input.recognition import recognize


def read(text: str, name: str = "x.csv", **options: object) -> list[object]:
    """Values and reasons."""
    file = io.BytesIO(text.encode())
    (form,) = recognize(file, name, FormOptions(**options))  # type: ignore[arg-type]
    return [record.value if isinstance(record, Record) else record.reason for record in read_records(file, form)]


def dialect(text: str, usual: str = ",") -> Dialect:
    return recognize_dialect(text, usual, None, True, (), True)


@pytest.mark.parametrize("delimiter", list(",;\t|"))
def test_the_delimiter_is_told_from_the_rows(delimiter: str) -> None:
    file = io.StringIO()
    rows = [["id", "text", "place"], ["1", "so, happy; today | you", "x"], ["2", 'a "quote"', ""], ["3", "plain", "y"]]
    csv.writer(file, delimiter=delimiter).writerows(rows)
    assert dialect(file.getvalue()).delimiter == delimiter
    assert read(file.getvalue()) == [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def test_the_usual_delimiter_wins_unless_another_fits_better() -> None:
    assert dialect("id,text\n1,a; b\n2,c; d\n").delimiter == ","
    assert dialect("Tweet\nso happy; really\n").delimiter == ","
    assert dialect("id\ttext\n1\ta, b\n", "\t").delimiter == "\t"
    assert dialect("id,text\n1,a\n", "\t").delimiter == ","


def test_a_delimiter_that_is_given() -> None:
    assert read("a:b\n1:2,3\n", delimiter=":") == [{"a": "1", "b": "2,3"}]
    assert read("a\tb\n1\t2\n", delimiter="tab") == [{"a": "1", "b": "2"}]


def test_the_line_of_excel() -> None:
    assert read("sep=;\nid;text\n1;a, b\n") == [{"id": "1", "text": "a, b"}]
    assert read('"sep=|"\r\nid|text\r\n1|a\r\n') == [{"id": "1", "text": "a"}]


def test_backslashes_before_quotes() -> None:
    text = 'id,text\n1,"she said \\"hi\\", twice"\n2,"fine"\n3,"a \\"b\\" c"\n'
    assert read(text) == [
        {"id": "1", "text": 'she said "hi", twice'}, {"id": "2", "text": "fine"}, {"id": "3", "text": 'a "b" c'},
    ]  # fmt: skip
    assert read('id,text\n1,"C:\\"\n2,c:\\new\n') == [{"id": "1", "text": "C:\\"}, {"id": "2", "text": "c:\\new"}]


def test_quotes_that_only_some_other_writer_would_understand_cost_their_line_and_no_character() -> None:
    text = 'date;text;id\n1;"she said "hi" there";7\n2;"so sad";8\n3;"plain";9\n'
    assert read(text) == [
        "not CSV: ';' expected after '\"'", {"date": "2", "text": "so sad", "id": "8"},
        {"date": "3", "text": "plain", "id": "9"},
    ]  # fmt: skip
    escaped = 'id,text\n1,"a \\"b\\" c"\n2,"she said "hi" there"\n3,"a \\"b\\" \\\\"\n'
    first, second, third = read(escaped)
    assert (first, third) == ({"id": "1", "text": 'a "b" c'}, {"id": "3", "text": 'a "b" \\'})
    assert "a quote inside quotes has no backslash" in str(second)


def test_of_backslashes_before_quotes_only_these_and_doubled_ones_are_taken_off() -> None:
    text = 'id,text\n1,"she said \\"hi\\""\n2,¯\\_(ツ)_/¯\n3,"a\\nb \\\\ c"\n4,\\N\n\\N,"two\\\nlines"\n5,c:\\\n6,x\n'
    assert read(text) == [
        {"id": "1", "text": 'she said "hi"'}, {"id": "2", "text": "¯\\_(ツ)_/¯"}, {"id": "3", "text": "a\\nb \\ c"},
        {"id": "4", "text": ""}, {"id": "", "text": "two\nlines"}, {"id": "5", "text": "c:\\"},
        {"id": "6", "text": "x"},
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
def test_what_databases_write_for_no_value_is_none(name: str) -> None:
    mark = "\t" if name == "x.tsv" else ","
    text = "id,text,body\n1,\\N,so happy\n\\N,\\Nice,\n".replace(",", mark)
    assert read(text, name) == [
        {"id": "1", "text": "", "body": "so happy"}, {"id": "", "text": "\\Nice", "body": ""},
    ]  # fmt: skip


def test_blanks_around_names_of_columns_are_none_of_theirs() -> None:
    assert read("id , text\n1,so happy\n") == [{"id": "1", "text": "so happy"}]
    assert read("\ufeff\ufeffid,text\n1,so happy\n") == [{"id": "1", "text": "so happy"}]


@pytest.mark.parametrize("mark", list(",;\t|"))
def test_a_table_that_is_called_a_text_is_one(mark: str) -> None:
    table = "id,Tweet,date\n1,so happy,2020\n2,so sad,2020\n".replace(",", mark)
    rows = [{"id": "1", "Tweet": "so happy", "date": "2020"}, {"id": "2", "Tweet": "so sad", "date": "2020"}]
    assert read(table, "x.txt") == rows
    assert read(table, "x.txt", format="text") == table.split("\n")[:-1]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (",id,text\n0,11,so happy\n", [{"": "0", "id": "11", "text": "so happy"}]),
        ("id,text,score(0-4)\n11,so happy,4\n", [{"id": "11", "text": "so happy", "score(0-4)": "4"}]),
        ("id,title,selftext\n11,a,b\n", [{"id": "11", "title": "a", "selftext": "b"}]),
        ("sep=;\nid;text\n11;so happy\n", [{"id": "11", "text": "so happy"}]),
        ("text,label\nso happy,joy\n", [{"text": "so happy", "label": "joy"}]),
        ('[{"id":"1","text":"a"},\n{"id":"2","text":"b"}]\n', [{"id": "1", "text": "a"}, {"id": "2", "text": "b"}]),
        ('{\n "id":"1",\n "text":"a"\n}\n', [{"id": "1", "text": "a"}]),
        ('{"id":"1","text":"a"},\n{"id":"2","text":"b"},\n', [{"id": "1", "text": "a"}, {"id": "2", "text": "b"}]),
        ('window.YTD.tweets.part0 = [{"id":"1","text":"a"}]', [{"id": "1", "text": "a"}]),
    ],
)
def test_rows_and_documents_that_are_called_texts(text: str, rows: list[dict[str, str]]) -> None:
    assert read(text, "x.txt") == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,text\n1,so happy, really\n2,so sad, too\n", "its first line names columns, 'id,text'.*--format csv, or"),
        ("a\tso happy\n" * 20 + "b\tso\tsad\n", "its lines have 1 tab.s. each.*--format tsv"),
        ('"0","1467810369","Mon","NO_QUERY","ann","so cold"\n' * 3, "--columns .*--no_header"),
    ],
)
def test_what_may_be_a_table_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(text, "x.txt")


def test_what_is_said_of_a_table_makes_one_of_what_is_called_a_text() -> None:
    rows = [{"id": "11", "text": "so happy"}, {"id": "12", "text": "so sad"}]
    assert read("11,so happy\n12,so sad\n", "x.txt", no_header=True, columns=("id", "text")) == rows
    assert read("id^text\n11^so happy\n12^so sad\n", "x.txt", delimiter="^") == rows


def test_names_of_columns_beside_a_first_line_that_is_a_row() -> None:
    text = "1500000000000000000,so happy\n1500000000000000001,so sad\n"
    with pytest.raises(InputError, match="it is a row: give --no_header beside --columns"):
        read(text, columns=("id", "text"))
    assert len(read(text, columns=("id", "text"), no_header=True)) == 2
    assert read("a,b\n1,x\n", columns=("id", "text")) == [{"id": "1", "text": "x"}]


@pytest.mark.parametrize(
    "text",
    [
        'id;text\n11;"so happy\nGreat, post"\n12;so sad\n', 'label,sms\nham,"yes, ok, review, love"\nspam,win\n',
        "id,title,selftext\n1,a,b\nyes,no,post\n", "headline\nso happy\nGreat, post, x\n", "\n\nid,text\n1,a\n",
        "sep=,\n\nid,text\n1,a\n",
    ],
)  # fmt: skip
def test_what_comes_first_is_the_header_unless_there_is_a_better_one(text: str) -> None:
    assert len(read(text)) in (1, 2)


@pytest.mark.parametrize(
    "text",
    [
        "so happy, really\nnot at all\n", "text\nmore text\n", "a, text\nwithout\ncommas, or with\n", "id,text\n",
        "tweet about\ttabs\nnone here\n", "", "\n\n", "[1/2] so happy\n[2/2] so sad\n", "{so} happy\nso sad\n",
        "Review, please\nso happy, line 0\nnot bad, line 1\n", "content, but tired\nhappy, but sad\nso, so\n",
        "ORCs make me so happy\n", "PAR1 was the first stage\nso sad\n", "ARROW1 so happy\n", "FEA1 so happy\n",
        "well; text, and so on and on and on and on\nx; y, z\n",
    ],
)  # fmt: skip
def test_texts_are_no_tables(text: str) -> None:
    assert read(text, "x.txt") == text.split("\n")[:-1]


def test_names_of_columns_that_do_not_come_first() -> None:
    text = 'Report:,Brand\nFrom:,2020\n\n"Date","Url","Full Text"\n2020,http://x,so happy\n'
    with pytest.raises(InputError, match=r"in line 4, 'Date,Url,Full Text'; .* tail -n \+4") as caught:
        read(text)
    line = int(str(caught.value).rpartition("+")[2])
    (row,) = read("".join(text.splitlines(keepends=True)[line - 1 :]))
    assert row == {"Date": "2020", "Url": "http://x", "Full Text": "so happy"}
    assert read("word,kind\ntext,noun\n") == [{"word": "text", "kind": "noun"}]


def test_names_of_columns_that_are_given() -> None:
    assert read("1,a\n2,b\n", no_header=True) == [{"1": "1", "2": "a"}, {"1": "2", "2": "b"}]
    assert read("1,a\n", no_header=True, columns=("id", "text")) == [{"id": "1", "text": "a"}]
    (known,) = read('"4","1467810001","Mon Apr 06 22:19:45 PDT 2009","NO_QUERY","someone","so happy"\n', no_header=True)
    assert (known["ids"], known["text"]) == ("1467810001", "so happy")
    assert read("id,id\n1,a\n", columns=("id", "text")) == [{"id": "1", "text": "a"}], "instead of the header's"


def test_a_header_in_the_middle() -> None:
    again = "the header again: files were joined"
    assert read("id,text\n1,a\nid,text\n2,b\n") == [{"id": "1", "text": "a"}, again, {"id": "2", "text": "b"}]
    assert read("id,text\n1,a\n\ufeffid,text\n2,b\n")[1] == again
    assert read("id\ttext\n1\ta\nid\ttext\n", "x.tsv")[1] == again


@pytest.mark.parametrize("order", [("id", "text"), ("text", "id")])
def test_a_stray_quote_does_not_make_one_row_of_three(order: tuple[str, str]) -> None:
    rows = [("1001", '"oh no'), ("1002", "fine"), ("1003", 'what a cup"'), ("1004", "ok")]
    lines = [",".join(dict(zip(("id", "text"), row, strict=True))[name] for name in order) for row in rows]
    found = read("\n".join([",".join(order), *lines, ""]))
    assert len(found) == 4
    assert {"id": "1002", "text": "fine"} in found and {"id": "1004", "text": "ok"} in found
    assert sum(isinstance(value, str) for value in found) >= 1
    assert not any("\n" in value["text"] for value in found if isinstance(value, dict))


def test_a_quote_without_an_end_costs_its_line() -> None:
    found = read('id,text\n1,a\n2,"b\n' + "".join(f"{number},c\n" for number in range(3, 3000)))
    assert len(found) == 2999
    assert [index for index, value in enumerate(found) if isinstance(value, str)] == [1]


def test_many_quotes_without_ends_take_linear_time() -> None:
    text = "id,text\n" + '1,"""\n2,b\n' * 20_000
    found = read(text)
    assert len(found) >= 20_000


def test_texts_of_several_lines_are_one() -> None:
    text = 'id,text,place\n1400000000000000001,"one, two\n3, 2, 1\n\nfour",x\n2,b,y\n'
    assert read(text)[0] == {"id": "1400000000000000001", "text": "one, two\n3, 2, 1\n\nfour", "place": "x"}


def test_quotes_in_tsv_are_characters_unless_the_field_is_quoted_on_its_line() -> None:
    text = 'id\ttext\n1\t"monday again\n2\tlove this\n3\twe won"\n4\t"quoted" first\n5\t"all ""of"" it"\n6\t"a\tb"\n'
    texts = [value["text"] for value in read(text, "x.tsv") if isinstance(value, dict)]
    assert texts == ['"monday again', "love this", 'we won"', '"quoted" first', 'all "of" it', "a\tb"]


@pytest.mark.parametrize("rows", [
    [("two\nlines", "1", "train"), ("one, two\nthree", "2", "test")],
    [("1", "so, happy\nso, so\n, happy"), ("2", "5\n6")],
    [("17", "2020-01-01 10:00", "a, b, c\nd, e\nf"), ("18", "2020-01-01 10:01", "\n")],
])  # fmt: skip
def test_honest_rows_of_several_lines(rows: list[tuple[str, ...]]) -> None:
    file = io.StringIO()
    csv.writer(file).writerows([("a", "b", "c")[: len(rows[0])], *rows])
    found = read_records(io.BytesIO(file.getvalue().encode()), Form("csv"))
    assert [tuple(record.value.values()) for record in found if isinstance(record, Record)] == rows


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=8), delimiter=st.sampled_from(",;|"))
def test_what_a_writer_has_quoted_comes_back_or_is_told(texts: list[str], delimiter: str) -> None:
    file = io.StringIO()
    rows = [(f"{10**18 + number}", text) for number, text in enumerate(texts)]
    csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([("id", "text"), *rows])
    form = Form("csv", dialect=Dialect(delimiter))
    found = list(read_records(io.BytesIO(file.getvalue().encode()), form))
    good = [tuple(record.value.values()) for record in found if isinstance(record, Record)]
    assert good == rows or any(isinstance(record, Damage) for record in found)
    assert good == rows or any("," in text or delimiter in text for text in texts)
