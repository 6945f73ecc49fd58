"""User-day mood features joined to a target, as they were known at its time.

Tweets of some users are scored and aggregated; a target of a day may only see features of the days before. Here the
target is whether a user buys something, which users do more often after a good day.

python examples/mood_features.py
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

GOOD = ("best day ever", "so happy right now", "love my friends so much", "yes!!! finally")
BAD = ("worst day ever", "so tired of this", "i miss you so much", "why does nothing work")
USERS, DAYS, START = 20, 12, datetime(2024, 5, 1, tzinfo=UTC)


def run(*command: str) -> None:
    subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main(directory: Path) -> None:
    generator = random.Random(1)
    tweets, targets = [], []
    for user in range(USERS):
        for day in range(DAYS):
            is_good = generator.random() < 0.5
            begun = START + timedelta(days=day)
            for _ in range(3):
                time = begun + timedelta(minutes=generator.randrange(24 * 60))
                text = generator.choice(GOOD if is_good else BAD)
                tweets.append({"text": text, "user": f"user {user}", "created_at": time.isoformat()})
            bought = generator.random() < (0.8 if is_good else 0.2)
            targets.append({"user": f"user {user}", "time": begun + timedelta(days=1, hours=9), "bought": bought})
    (directory / "tweets.jsonl").write_text("".join(json.dumps(tweet) + "\n" for tweet in tweets))
    scored, features = str(directory / "scored"), str(directory / "features")
    run("pipelines.annotate", "--input", str(directory / "*.jsonl"), "--output", scored,
        "--keep_fields", "user:string", "--timestamp_field", "created_at")  # fmt: skip
    run("pipelines.aggregate", scored, "--by", "user,day", "--output", features)

    table = pd.read_parquet(features, columns=["user", "event_timestamp", "probabilities"])
    # A feature is known from its event_timestamp on, the end of its day; the newest that was known is taken.
    joined = pd.merge_asof(
        pd.DataFrame(targets).sort_values("time").astype({"time": "datetime64[us, UTC]"}),
        table.sort_values("event_timestamp"),
        left_on="time",
        right_on="event_timestamp",
        by="user",
        tolerance=pd.Timedelta(days=1),
    )
    assert (joined["event_timestamp"] <= joined["time"]).all()
    first_days = joined["time"] < START + timedelta(days=DAYS * 2 // 3)
    x, y = np.stack(joined["probabilities"].tolist()), joined["bought"].to_numpy()
    model = LogisticRegression(max_iter=1_000).fit(x[first_days], y[first_days])
    print(f"{len(tweets)} tweets, {len(table)} features of a user and a day, {len(joined)} targets")
    print(f"bought on later days: {y[~first_days].mean():.2f}")
    print(f"accuracy on later days from the mood of the day before: {model.score(x[~first_days], y[~first_days]):.2f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
