"""Airflow 3: score what is new every hour and verify it, compact the results every week.

Copy it into the DAGs folder. Settings are Airflow Variables, read when a task runs:

    torchmoji_python      a Python that has torchmoji-beam, in a virtual environment of its own (default: python)
    torchmoji_input       what to read: a glob or URI
    torchmoji_output      where the results are
    torchmoji_options     further options of pipelines.annotate (default: none)

What each exit status means for a scheduler stands in docs/scheduling.md.
"""

from __future__ import annotations

import shlex
from datetime import datetime, timedelta

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

ANOTHER_RUN_HOLDS_THE_LOCK = 4


class CommandOperator(BaseOperator):
    """Run a command, without a shell, and act on its exit status.

    0 is success, 4 skips the task, since the next run takes over. A status of `needs_a_person` fails without another
    try, all others with the retries of the task. (BashOperator can skip by status, but not fail for good.)
    """

    template_fields = ("command",)

    def __init__(self, *, command: str, needs_a_person: tuple[int, ...] = (2,), **arguments) -> None:
        super().__init__(**arguments)
        self.command = command
        self.needs_a_person = needs_a_person
        self._hook: SubprocessHook | None = None

    def execute(self, context) -> None:
        self._hook = SubprocessHook()
        status = self._hook.run_command(shlex.split(self.command)).exit_code
        if status == 0:
            return
        message = f"exit status {status}; the log says why"
        if status == ANOTHER_RUN_HOLDS_THE_LOCK:
            raise AirflowSkipException(message)
        raise (AirflowFailException if status in self.needs_a_person else AirflowException)(message)

    def on_kill(self) -> None:
        """The command takes SIGTERM as an interrupt: it removes what it has begun, and lets go of the lock."""
        if self._hook is not None:
            self._hook.send_sigterm()


PYTHON = "{{ var.value.get('torchmoji_python', 'python') }}"
INPUT = "'{{ var.value.torchmoji_input }}'"  # quoted, so that a name may hold spaces
OUTPUT = "'{{ var.value.torchmoji_output }}'"
OPTIONS = "{{ var.value.get('torchmoji_options', '') }}"

COMMON = {
    "start_date": datetime(2025, 1, 1),  # UTC, unless Airflow is set up otherwise
    "catchup": False,  # every run scores all that is new, whatever hours were missed
    "max_active_runs": 1,
    "default_args": {
        "retries": 3,
        "retry_delay": timedelta(minutes=5),
        "retry_exponential_backoff": True,
        "execution_timeout": timedelta(hours=6),
    },
    "tags": ["torchmoji"],
}

with DAG("torchmoji_annotate", schedule="@hourly", **COMMON):
    annotate = CommandOperator(
        task_id="annotate",
        command=f"{PYTHON} -m pipelines.annotate --input {INPUT} --output {OUTPUT} {OPTIONS}",
        needs_a_person=(2, 3),
    )
    # 1 means that results are not sound, which no retry mends.
    verify = CommandOperator(task_id="verify", command=f"{PYTHON} -m pipelines.verify {OUTPUT}", needs_a_person=(1, 2))
    annotate >> verify

# Between the two, the lock keeps order: whichever comes second is skipped, and its next run takes over.
with DAG("torchmoji_compact", schedule="@weekly", **COMMON):
    compact = CommandOperator(task_id="compact", command=f"{PYTHON} -m pipelines.compact {OUTPUT}")
    verify_compacted = CommandOperator(
        task_id="verify", command=f"{PYTHON} -m pipelines.verify {OUTPUT}", needs_a_person=(1, 2)
    )
    compact >> verify_compacted
