"""Whatever a data set has been through, step by step at random, its features are those of its live rows."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines import annotate
from pipelines.data_set.aggregation import Aggregated, aggregate
from pipelines.data_set.compaction import compact
from pipelines.data_set.feature_record import Grouping
from pipelines.data_set.manifest import DataFile, Model
from pipelines.data_set.snapshot import DataSet, live_files
from tests.pipelines.conftest import read_live, write_lines
from tests.pipelines.test_aggregate import KEPT, assert_equal, features, features_of, tweets
from torchmoji_core.errors import RunError
from transforms.storage import files as storage

GROUPINGS = ("user,day", "hour", "lang,week", "user,lang,month", "user")
T = TypeVar("T")


@pytest.fixture(scope="module")
def rows(model: str, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Rows of two months as annotate writes them; some have no user, some no tokens, some no time."""
    directory = tmp_path_factory.mktemp("rows")
    made = tweets("a", (1, 2, 30), 40, seed=1)
    made += [row | {"created_at": row["created_at"].replace("-05-", "-06-")} for row in tweets("b", (1, 3), 20, seed=2)]
    path, output = write_lines(directory / "rows.jsonl", made), directory / "out"
    arguments = ["--model", model, "--input", str(path), "--output", str(output), "--progress", "off", *KEPT]
    assert annotate.main(arguments) == 0
    table = read_live(output)
    times = pc.if_else(np.arange(len(table)) % 11 == 5, None, table["timestamp"])
    return table.set_column(table.schema.get_field_index("timestamp"), table.schema.field("timestamp"), times)


class History:
    """A data set of some of the rows, and its features."""

    def __init__(self, rows: pa.Table, directory: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self._rows, self._random, self._monkeypatch = rows, np.random.default_rng(seed), monkeypatch
        self._output, self._features = directory / "out", directory / "features"
        self._by = Grouping.parse(GROUPINGS[seed % len(GROUPINGS)])
        self._commit(3, ())

    def go_on(self) -> str:
        """Do one step at random; gives its name."""
        steps: tuple[Callable[[], None], ...] = (
            self.add, self.change, self.retire, self.retire, self.compact, self.lose, self.fail,
        )  # fmt: skip
        step = steps[self._random.integers(len(steps))]
        step()
        return step.__name__

    def add(self) -> None:
        """New files; their rows may be of days that are done."""
        self._commit(self._random.integers(1, 4), ())

    def change(self) -> None:
        """A file with other rows takes the place of one."""
        self._commit(1, self._some(live_files(str(self._output))))

    def retire(self) -> None:
        """A file has gone."""
        self._commit(0, self._some(live_files(str(self._output))))

    def compact(self) -> None:
        """All files become one."""
        compact(str(self._output), 1 << 20)

    def lose(self) -> None:
        """Somebody deletes a file of features."""
        for path in self._some(list(self._features.glob("features-*"))):
            path.unlink()

    def fail(self) -> None:
        """Rows come, and the disk is full while features are made of them."""
        self.add()
        left, rename = self._random.integers(1, 4), storage.rename

        def rename_a_few(source: str, destination: str) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise OSError(28, "No space left on device")
            rename(source, destination)

        with self._monkeypatch.context() as patched:
            patched.setattr(storage, "rename", rename_a_few)
            with contextlib.suppress(RunError):
                self._aggregate()

    def check(self) -> None:
        """Bring the features up to date; they are what pandas makes of the rows."""
        done = self._aggregate()
        rows = pa.concat_tables([self._rows.slice(0, 0), *map(pq.read_table, live_files(str(self._output)))])
        expected = features_of(rows.to_pandas(), list(self._by.entity), self._by.period)
        assert done.rows == len(rows)
        assert done.rows - done.left_out.total() == (expected["tweets"].sum() if len(expected) else 0)
        if len(expected):
            assert_equal(features(self._features), expected, list(self._by.entity), self._by.period)
        else:
            assert not list(self._features.glob("features-*"))

    def _aggregate(self) -> Aggregated:
        return aggregate(str(self._output), self._by, str(self._features))

    def _some(self, there: Sequence[T]) -> list[T]:
        return [there[self._random.integers(len(there))]] if there else []

    def _commit(self, new: int, retired: Sequence[str]) -> None:
        files = []
        for _ in range(new):
            name = f"part-{'0' * 12}-{uuid.uuid4().hex[:12]}.parquet"
            drawn = self._rows.take(self._random.choice(len(self._rows), self._random.integers(1, 12)))
            self._output.mkdir(parents=True, exist_ok=True)
            pq.write_table(drawn, self._output / name)
            files.append(DataFile(name, len(drawn), 1, ""))
        names = tuple(Path(path).name for path in retired)
        data_set = DataSet.read(str(self._output))
        model = Model("tiny", "0", "")
        data_set.commit(lambda state: state.next_manifest("annotate", model=model, files=tuple(files), retired=names))


@pytest.mark.parametrize("seed", range(5))
def test_features_are_those_of_the_live_rows_after_every_step(
    seed: int, rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history, steps = History(rows, tmp_path, seed, monkeypatch), ["begin"]
    for _ in range(6):
        try:
            history.check()
        except Exception as error:
            raise AssertionError(f"after {', '.join(steps)}: {error}") from error
        steps.append(history.go_on())
