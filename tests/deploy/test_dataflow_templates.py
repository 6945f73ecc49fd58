"""deploy/dataflow: what can be known of an image that is not built here, and of templates that Google reads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.cli import annotate_options, options
from tests.fake_dataflow import FakeDataflow
from tests.pipelines.conftest import corpus

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "dataflow"
TEMPLATES = {"files": annotate_options.annotate_parser, "stream": options.score_parser}


def template(name: str) -> dict[str, Any]:
    return json.loads((DEPLOY / f"{name}.json").read_text())


@pytest.mark.parametrize("name", TEMPLATES)
def test_google_reads_the_metadata(name: str) -> None:
    types = pytest.importorskip("google.cloud.dataflow_v1beta3.types", reason="needs the extra gcp")
    text = (DEPLOY / f"{name}.json").read_text()
    read = types.TemplateMetadata.from_json(text)  # refuses a field that it does not know
    assert len(read.parameters) == len(template(name)["parameters"])
    with pytest.raises(Exception, match="notAField"):
        types.TemplateMetadata.from_json(text.replace('"paramType"', '"notAField"', 1))


SAMPLE = {
    "input": "pubsub://projects/project-one/subscriptions/tweets",
    "publish": "pubsub://projects/project-one/topics/scores",
    "threads": "1",
}
"""Values for options that do not take any text; the others get a time."""


@pytest.mark.parametrize("name", TEMPLATES)
def test_parameters_are_options_with_our_values(name: str) -> None:
    """A template gives each of them a value, so an option without one would be refused."""
    parameters = template(name)["parameters"]
    names = [parameter["name"] for parameter in parameters]
    assert len(set(names)) == len(names)
    parser = TEMPLATES[name]()
    at_rest = vars(options.parse_known(parser, ["--input=x"])[0])
    beams = PipelineOptions([]).get_all_options()
    for parameter in parameters:
        option, default = parameter["name"], parameter.get("defaultValue")
        values = [each["value"] for each in parameter.get("enumOptions", ())] or [default or SAMPLE.get(option, "1m")]
        for value in values:
            parsed, rest = options.parse_known(parser, ["--input=x", f"--{option}={value}"])
            assert not rest or option in beams, option
            if value == default and option in at_rest:
                assert getattr(parsed, option) == at_rest[option], f"the default of {option} is another"


def test_the_image_is_of_our_versions_and_starts_workers() -> None:
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines)
    python, beam = re.findall(r"^FROM apache/beam_python([\d.]+)_sdk:([\d.]+)$", text, re.MULTILINE)[0]
    assert f"apache-beam=={beam.rpartition('.')[0]}.*" in (ROOT / "constraints.txt").read_text()
    assert f"python{python.replace('.', '')}-template-launcher-base" in text
    assert not re.search(r"^(ENTRYPOINT|CMD|USER)", text, re.MULTILINE)  # those of the base stay
    assert "&& pip check" in text
    copied = [path for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for path in line.split()]
    assert copied == ["constraints.txt", "dist/torchmoji_beam-*.whl", "deploy/dataflow/launch.py"]
    assert (ROOT / copied[0]).exists() and (ROOT / copied[2]).exists()
    (launched,) = re.findall(r"^ENV FLEX_TEMPLATE_PYTHON_PY_FILE=(\S+)$", text, re.MULTILINE)
    assert f"COPY {copied[2]} {launched}" in lines


@pytest.mark.dataflow
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_launched(dataflow: FakeDataflow, model: str, tmp_path: Path, name: str) -> None:
    """As Google's launcher does: it has the job written into a file, and submits that itself."""
    corpus(tmp_path / "in", 1, 20)
    files, messages = f"{tmp_path}/in/*", "pubsub://projects/project-one/subscriptions/tweets"
    written = tmp_path / "job_object"
    given = [f"--input={files if name == 'files' else messages}", "--output=out", f"--model={model}"]
    command = [sys.executable, DEPLOY / "launch.py", *given, *dataflow.options, f"--template_location={written}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert f"template written to {written}" in ended.stdout
    job = json.loads(written.read_text())
    assert job["type"] == {"files": "JOB_TYPE_BATCH", "stream": "JOB_TYPE_STREAMING"}[name]
    assert not dataflow.jobs
