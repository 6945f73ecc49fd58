"""What the launcher of a Flex Template runs: messages are a stream, files are annotated; nothing is waited for.

Parameters of the template arrive as options, `--name=value`, with those of the runner beside them.
"""

from __future__ import annotations

import sys

from pipelines import annotate, score
from pipelines.cli.exits import end, run_command

MESSAGES = ("--input=pubsub://", "--input=kafka://")

if __name__ == "__main__":
    is_stream = any(argument.startswith(MESSAGES) for argument in sys.argv)
    # All that runs is in the image, so nothing of Beam is to be staged.
    sys.argv += ["--streaming" if is_stream else "--no_wait", "--sdk_location=container"]
    end(run_command(score.main if is_stream else annotate.main))
