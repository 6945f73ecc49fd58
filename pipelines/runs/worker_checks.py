"""What a worker on another machine looks at before it begins, and how the launcher learns that one has begun."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Sequence

import apache_beam as beam

from pipelines.data_set.snapshot import registration
from torchmoji_core import __version__
from torchmoji_core.errors import RunError
from transforms.storage import files as storage


def check_worker(output: str, run_id: str, versions: str, registered: str = "", plugins: Sequence[str] = ()) -> None:
    """Make sure, on a worker, that it does what the launcher means, and where it means it.

    Args:
        output: in which the launcher has registered the run.
        run_id: of the run.
        versions: the launcher's.
        registered: the file with which that was done, where it is another one than that of runs with an end.
        plugins: modules that the job wants imported. Beam's worker has tried that, and where it could not, gone on.

    Raises:
        RunError: if versions differ, a plugin is missing, or the output is another directory of that name, of another
            machine or container.
    """
    if versions != our_versions():
        raise RunError(f"a worker has {our_versions()}, the launcher {versions}; install the same for both")
    for plugin in plugins:
        _import_plugin(plugin)
    if not storage.exists(registered or registration(output, run_id)):
        raise RunError(
            f"workers see another directory {output} than the command that started them; give a directory that they "
            "share, or a URI: s3://, gs://, az:// or hdfs://"
        )
    if not registered:  # for a run with an end, there is somebody who waits
        storage.create(_begun(output, run_id)).close()


def _import_plugin(name: str) -> None:
    """Import a module, or that of a class, as Beam does it."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        try:
            importlib.import_module(name.rpartition(".")[0])
        except (ImportError, ValueError):
            raise RunError(
                f"--beam_plugins {name}: a worker cannot import it: {error}; correct the name, or install it there"
            ) from None


class HasBegun:
    """Tells a `Watchdog` whether a worker has got through `check_worker`; from then on each call differs."""

    def __init__(self, output: str, run_id: str) -> None:
        self._path, self._seen = _begun(output, run_id), 0

    def __call__(self) -> int:
        """0 until then. A store that cannot tell now is asked again."""
        with contextlib.suppress(OSError):
            if self._seen or storage.exists(self._path):
                self._seen += 1
        return self._seen


def our_versions() -> str:
    """What must be the same where parts of one job run."""
    return f"torchmoji-beam {__version__} with apache-beam {beam.__version__}"


def _begun(output: str, run_id: str) -> str:
    return f"{registration(output, run_id)}.begun"
