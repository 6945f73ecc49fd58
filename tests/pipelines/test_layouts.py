"""Layouts from end to end: what a user gets of pages, notices, cut texts, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import Finished, read_dead_letters, read_live, read_scores
from transforms.metrics import CUT, NOTICES, READ, TIMES_UNREAD, WITH_HTML, WITHOUT_ID

Run = Callable[..., Finished]
PAGE = {"data": [{"id": "1", "text": "tea &amp; rain"}, {"id": "2", "text": "RT @x: so\u2026"}, 5], "meta": {}}
NOTICE = {"delete": {"status": {"id": 9}}}


def write(path: Path, *records: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_pages_notices_and_cut_texts(workers: str, run_score: Run, tmp_path: Path) -> None:
    write(tmp_path / "in" / "pages.jsonl", PAGE, NOTICE)
    write(tmp_path / "in" / "plain.jsonl", {"words": 1, "text": "a <b>b</b>", "at": "soon"}, {"text": "c", "at": 0})
    options = ("--timestamp_field", "at", "--direct_num_workers", workers, "--report", "report.json")
    finished = run_score("--input", "in", "--output", "out", "--max_dead_fraction", "0.5", *options)
    assert finished.status == 0, finished.err
    rows = {row["text"]: row for row in read_scores(tmp_path / "out").to_pylist()}
    assert rows.keys() == {"tea & rain", "RT @x: so\u2026", "a <b>b</b>", "c"}
    assert [text for text, row in rows.items() if row["cut_by_platform"]] == ["RT @x: so\u2026"]
    assert rows["tea & rain"]["id"] == "1" and rows["a <b>b</b>"]["timestamp"] is None
    (letter,) = read_dead_letters(tmp_path / "out")
    assert letter["position"] == "0.2" and letter["text"] == "5"
    report = json.loads((tmp_path / "report.json").read_text())
    figures = {READ: 6, "scored": 4, "dead": 1, NOTICES: 1, CUT: 1, WITHOUT_ID: 2, WITH_HTML: 1, TIMES_UNREAD: 1}
    assert {name: report.get(name, 0) for name in figures} == figures
    assert "torchmoji_last_run_cut_records" in (tmp_path / "report.prom").read_text()
    for remark in ("--layout plain", "cut_by_platform", "--id_field", "--html tags", "--timestamp_field"):
        assert remark in finished.out, remark


def test_a_corpus_of_pages_and_notices_is_sound(run_annotate: Run, run_verify: Run, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", *[{"id": str(number), "text": "so cold"} for number in range(3)])
    assert run_annotate().status == 0
    page = {"data": [{"id": "7", "text": "a"}, {"id": "8", "text": "b"}], "meta": {"result_count": 2}}
    write(tmp_path / "in" / "b.jsonl", NOTICE, page, NOTICE)
    finished = run_annotate()
    assert finished.status == 0 and "layout      twitter-v2, JSON lines: text from text" in finished.out
    assert sorted(read_live(tmp_path / "out")["id"].to_pylist()) == ["0", "1", "2", "7", "8"]
    assert run_verify().status == 0


def test_fields_of_pages_are_kept_under_names_of_ones_own(run_score: Run, tmp_path: Path) -> None:
    tweet = {"id": "1", "text": "a", "source": "an app", "lang": "en"}
    write(tmp_path / "a.jsonl", {"data": [tweet], "meta": {"newest_id": "1"}})
    kept = "source:as=client,lang,meta.newest_id:string:as=newest"
    finished = run_score("--input", "a.jsonl", "--output", "out", "--keep_fields", kept)
    assert finished.status == 0, finished.err
    (row,) = read_scores(tmp_path / "out").to_pylist()
    assert (row["client"], row["lang"], row["newest"]) == ("an app", "en", "1")
