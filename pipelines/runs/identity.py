"""What makes two runs the same command: recorded with what they write, and compared before more is written there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.cli.options import ScoreConfig
from pipelines.cli.redaction import HIDDEN, redact
from torchmoji_core.errors import InputError
from transforms.input.layouts import AUTO, PLAIN


def identity(config: ScoreConfig) -> dict[str, Any]:
    """What makes two runs the same command: all that decides the rows, but not where they come from or run."""
    score, stream = config.score, config.stream
    of_stream = {"stream": {"window": stream.window}} if stream is not None else {}
    layout = {"layout": config.fields.layout, "html": config.fields.html}
    of_layout = {name: value for name, value in layout.items() if value != AUTO}
    return {
        "inputs": sorted(map(_address, config.inputs)),
        **config.form.identity,
        "text_field": _fields(config.fields.text, PLAIN.text),
        "id_field": _fields(config.fields.id, PLAIN.id),
        "timestamp_field": config.fields.timestamp,
        "keep_fields": [f"{kept.option}:{kept.kind}" for kept in config.fields.keep],
        "partition_by": list(config.fields.partition_by),
        "model": None if score.model is None else _address(score.model),
        "precision": score.precision,
        "outputs": sorted(score.outputs),
        "top_k": score.top_k,
        "embedding_type": score.embedding_type,
        **of_stream,
        **of_layout,
    }


def _fields(paths: Sequence[str], by_default: Sequence[str]) -> list[str]:
    """The values in data sets that were begun before there were layouts."""
    return list(by_default if tuple(paths) == (AUTO,) else paths)


def _address(text: str) -> str:
    """A path or URI without credentials, which a URI has before its host or behind a question mark.

    The rest stays as it is, since other directories make another command, even if one is called `token=1`.
    """
    scheme, is_uri, place = text.partition("://")
    if not is_uri:
        return f"{text[:-3]}/*" if text.endswith("/**") else text  # a directory, as it was before others were in it
    place, mark, query = place.partition("?")
    user, at, path = place.rpartition("@")
    hidden = f"{scheme}://{HIDDEN}@"
    if redact(f"{scheme}://{user}{at}") == hidden:  # otherwise the @ is one of the path's
        return hidden + path + redact(mark + query)
    return f"{scheme}://{place}{redact(mark + query)}"


def joined_identity(config: ScoreConfig, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    """The identity of a data set to which rows were added: its own, so that the command that began it can go on.

    Only its inputs are more, and it says in which options the added rows may differ. So a command that replaces its own
    results does not take these for its own.
    """
    ours = identity(config)
    if earlier is None:
        return ours
    differing = {*earlier.get("appended", ()), *differences(ours, {**earlier})} - {"inputs", "appended"}
    inputs = sorted({*earlier.get("inputs", ()), *ours["inputs"]})
    return {**earlier, "inputs": inputs} | ({"appended": sorted(differing)} if differing else {})


def other_options(config: ScoreConfig, earlier: Mapping[str, Any]) -> list[str]:
    """Names of the options that keep a command from going on with a data set.

    Inputs come and go, and a row is the same from any subscription. Of the model, its fingerprint counts, and not where
    it is.

    Args:
        config: the command line.
        earlier: identity of the data set, or of a stream that writes there.
    """
    return [name for name in differences(identity(config), {**earlier}) if name not in ("appended", "inputs", "model")]


def check_goes_on(config: ScoreConfig, earlier: Mapping[str, Any] | None) -> None:
    """Make sure that a command goes on with a data set: rows with other columns do not belong into one.

    Args:
        config: the command line.
        earlier: identity of the data set; None of an empty one.

    Raises:
        InputError: naming the options that are others.
    """
    if earlier is not None and (changed := other_options(config, earlier)):
        raise InputError(
            f"output {config.output} holds results of another command (other {listed(changed, earlier)}); "
            "give the same options as before, or another --output"
        )


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Names of the options in which two identities differ."""
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def listed(names: Iterable[str], theirs: Mapping[str, Any] | None) -> str:
    """Options, with the value that a data set was begun with where that is one word: a default may have changed since.

    >>> listed(["embedding_type", "outputs"], {"embedding_type": "float16", "outputs": ["top", "text"]})
    'embedding_type: float16 there, outputs'
    """
    values = {name: value for name, value in (theirs or {}).items() if isinstance(value, str | int)}
    return ", ".join(f"{name}: {values[name]} there" if name in values else name for name in names)
