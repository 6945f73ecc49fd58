# make score        install everything into .venv and score the bundled sample
# make test         install everything and run ruff, mypy and the whole test suite
# make test-faults  kills, full disks, clocks that step: up to an hour
# make test-power-cut  images of a disk taken right after a command; mounts loop devices, so as root
# make test-lowest  the suite with the lowest versions that pyproject.toml allows, in .venv-lowest; and torchmoji_core alone,
#                  in .venv-core, with what PyFlink brings and without Beam: before a release
# make test-portable  jobs on Beam's embedded job server and on Prism, which it builds with Go into .venv/prism; each is killed
# make test-two-hosts  the same with launcher and worker in two network namespaces, as root
# make test-azure   install Azurite, an emulator of Azure's blobs, with npm into .venv/azurite and run the tests of az://
# make test-dataflow  launches on a fake of Google's service, in .venv-dataflow with what the image installs
# make test-flink   install PyFlink into .venv-flink, and kill a cluster of Flink that scores what a broker of Kafka has; Java 17
# make test-kafka   fetch a broker of Kafka with Maven into .venv/kafka, and kill it and its reader, and jobs on Prism, which
#                  it builds with Go; needs Java 17
# make test-airflow install Airflow into .venv-airflow and run docs/scheduling/airflow_dag.py with it
# make test-spark   install Spark into .venv-engines, and kill the processes of a cluster while it scores; needs Java 17
# make test-readers  install Spark, Ray, Dask, datasets, and a DuckDB with its extension delta, into .venv-engines: they read
#                  a data set, and score
# make lint         ruff and mypy alone
# make format       let ruff format the code
# make bench        the benchmarks, minutes each; figures go to benchmarks/results/
# make fuzz         an hour of looking for inputs that break readers or tokenizer; FUZZ_SECONDS=60 for a minute
# make dist         sdist and wheel into dist/
# make clean        remove what the others made, .venv included

PYTHON ?= python3
FUZZ_SECONDS ?= 3600
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: score test suite test-faults test-power-cut test-lowest test-core test-portable test-azure test-kafka test-dataflow test-airflow test-readers lint format bench fuzz dist clean test-two-hosts test-spark test-flink java-and-maven
.DELETE_ON_ERROR:

score: .venv/installed
	$(BIN)/python -m pipelines.score --runner=DirectRunner

test: lint suite

suite: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-faults: .venv/installed-dev
	$(PIP) --editable '.[dev,faults]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults --durations 5 tests

test-power-cut: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults tests/faults/test_durable.py

test-lowest: .venv-lowest/installed test-core
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest --numprocesses 2 --dist worksteal

test-core: .venv-core/installed
	.venv-core/bin/python -m pytest tests/core/test_arrow_scorer.py tests/core/test_texts.py tests/core/test_scores.py

test-portable: .venv/installed-dev .venv/prism/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m portable tests

test-two-hosts: .venv/installed-dev .venv/prism/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m two_hosts tests/pipelines/runs/test_two_hosts.py

test-azure: .venv/installed-dev .venv/azurite/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m azure tests/transforms/storage/test_azure.py

test-kafka: .venv/installed-dev .venv/kafka/installed .venv/prism/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m kafka tests/faults

test-dataflow: .venv-dataflow/installed
	OMP_NUM_THREADS=1 .venv-dataflow/bin/python -m pytest -m 'dataflow or not dataflow' tests/deploy tests/pipelines/runs/test_graphs.py

test-flink: java-and-maven .venv/installed-dev .venv-flink/installed .venv/kafka/installed
	.venv-flink/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall ./torchmoji_core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m flink --durations 5 tests/flink

test-airflow: .venv-airflow/installed
	.venv-airflow/bin/python -m pytest tests/scheduling/test_airflow.py

test-spark: .venv/installed-dev .venv-engines/installed
	@$${JAVA_HOME:+$$JAVA_HOME/bin/}java -version 2>/dev/null || { echo "Spark needs Java 17 or newer; install it" >&2; exit 1; }
	$(BIN)/python -m pytest -m spark tests/engines/test_spark.py

test-readers: .venv/installed-dev .venv-engines/installed
	$(BIN)/python -m pytest tests/pipelines/data_set/test_readers.py tests/engines/test_others.py

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/installed-dev
	$(PIP) --editable '.[dev,bench]'
	$(BIN)/python -m benchmarks.tokenizer
	$(BIN)/python -m benchmarks.workers
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.fidelity
	$(BIN)/python -m benchmarks.reading
	$(BIN)/python -m benchmarks.pipeline
	$(BIN)/python -m benchmarks.object_store
	$(BIN)/python -m benchmarks.aggregation
	$(BIN)/python -m benchmarks.annotation
	$(BIN)/python -m benchmarks.arrow_scorer
	$(BIN)/python -m benchmarks.streaming
	$(BIN)/python -m benchmarks.streaming --source kafka

fuzz: .venv/installed-dev
	$(PIP) --editable '.[dev,fuzz]'
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

dist: .venv/installed-dev
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf .venv .venv-* build dist *.egg-info scored

java-and-maven:
	@for program in java mvn; do command -v $$program >/dev/null \
		|| { echo "this target needs Java 17 and Maven, and there is no $$program: install it" >&2; exit 1; }; done

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml setup.py constraints.txt | .venv/bin/python
	$(PIP) --editable .
	touch $@

.venv/installed-dev: pyproject.toml setup.py constraints.txt | .venv/bin/python
	$(PIP) --editable '.[dev]'
	touch $@ .venv/installed

# pip cannot choose the lowest versions, uv can: those of what pyproject.toml names; what these need is the newest.
.venv-lowest/installed: pyproject.toml
	rm -rf .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	touch $@

# torchmoji_core alone, without Beam, beside the versions that apache-flink pins. Scores have the bits of the other
# environments where torch is the same.
.venv-core/installed: Makefile torchmoji_core/pyproject.toml
	rm -rf .venv-core
	$(PYTHON) -m venv .venv-core
	.venv-core/bin/python -m pip install --quiet --disable-pip-version-check ./torchmoji_core \
		"$$(grep ^torch== constraints.txt)" 'pyarrow==16.*' 'numpy==2.1.*' 'pandas==2.2.*' polars pytest hypothesis
	.venv-core/bin/python -m pip check
	touch $@

.venv/azurite/installed: Makefile
	npm install --silent --no-fund --no-audit --prefix .venv/azurite azurite@3
	touch $@

# Beam's runner in Go, of the version that is installed here.
.venv/prism/installed: .venv/installed-dev
	@if command -v go > /dev/null; then \
		GOBIN=$(CURDIR)/.venv/prism go install "github.com/apache/beam/sdks/v2/go/cmd/prism@v$$($(BIN)/python -c \
			'from importlib.metadata import version; print(version("apache-beam"))')" && touch $@; \
	else echo 'Go is missing: tests on Prism are left out'; fi

.venv/kafka/installed: tests/kafka_pom.xml
	mvn --quiet --batch-mode --file tests/kafka_pom.xml dependency:copy-dependencies -DoutputDirectory=$(CURDIR)/.venv/kafka
	touch $@

# The packages of deploy/dataflow/Dockerfile, whose check they have to pass before those of the tests come.
.venv-dataflow/installed: pyproject.toml constraints.txt Makefile
	rm -rf .venv-dataflow
	$(PYTHON) -m venv .venv-dataflow
	.venv-dataflow/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[gcp,kafka]'
	.venv-dataflow/bin/python -m pip check
	.venv-dataflow/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		gcp-storage-emulator kubernetes-validate pytest pyyaml
	touch $@

# The commands of docs/flink.md. Another version of Beam than ours, so an environment of its own.
.venv-flink/installed: torchmoji_core/pyproject.toml examples/flink/pom.xml
	rm -rf .venv-flink
	$(PYTHON) -m venv .venv-flink
	.venv-flink/bin/python -m pip install --quiet --disable-pip-version-check apache-flink==2.2.1 ./torchmoji_core \
		"$$(grep ^torch== constraints.txt)"
	.venv-flink/bin/python -m pip check
	mvn --quiet --batch-mode --file examples/flink/pom.xml dependency:copy-dependencies \
		-DoutputDirectory=$$(.venv-flink/bin/python -c 'import pyflink; print(*pyflink.__path__)')/lib
	touch $@

# An environment of its own, since Airflow brings about ninety packages.
.venv-airflow/installed: Makefile
	$(PYTHON) -m venv .venv-airflow
	.venv-airflow/bin/python -m pip install --quiet --disable-pip-version-check 'apache-airflow==3.3.*' 'pytest==9.2.*'
	touch $@

# An environment of its own: Spark has 400 MB, Ray 200, and the newest extension for DuckDB is for 1.5. Java is for Spark.
# Scores have the bits of the other environments where torch is the same.
.venv-engines/installed: Makefile
	rm -rf .venv-engines
	$(PYTHON) -m venv .venv-engines
	.venv-engines/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep ^torch== constraints.txt)" \
		'pyspark==4.3.*' 'ray[data]==2.60.*' 'dask[dataframe]' datasets 'duckdb==1.5.5' 'duckdb-extension-delta==1.5.5' \
		pyarrow pandas emoji safetensors text-unidecode tqdm 'smart-open[http]'
	touch $@
