"""An Airflow DAG: extract every night, then train a classifier on all embeddings that are there.

Put this file into Airflow's DAG folder. It needs Airflow 3 and the `imagebeam` command on the workers. The Airflow
variables `imagebeam_input`, `imagebeam_output` and `imagebeam_classifier` win over the defaults below.
"""

from __future__ import annotations

import datetime
import logging
import shlex
import subprocess

from airflow.sdk import DAG, Variable, task
from airflow.sdk.exceptions import AirflowFailException

INPUT = "gs://BUCKET/images/**/*.jpg"
OUTPUT = "gs://BUCKET/embeddings"
CLASSIFIER = "gs://BUCKET/classifier"

NOT_WORTH_A_RETRY = {
    2: "the command or its input is wrong",
    3: "it finished, but a check did not hold: its report and its manifest say which",
}


def run_imagebeam(*arguments: str) -> None:
    """Run a job of Imagebeam; its lines go to the task's log.

    Raises:
        AirflowFailException: for the exit codes that a retry cannot change.
        CalledProcessError: for the others: Airflow tries again, and the job goes on from the committed units.
    """
    command = ["imagebeam", *arguments]
    logging.getLogger("airflow.task").info("%s", shlex.join(command))
    code = subprocess.run(command, check=False).returncode
    if code in NOT_WORTH_A_RETRY:
        raise AirflowFailException(f"exit code {code}: {NOT_WORTH_A_RETRY[code]}")
    if code:
        raise subprocess.CalledProcessError(code, command)


with DAG(
    dag_id="imagebeam_extract",
    description="Embed new images, then train a classifier",
    schedule="0 2 * * *",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    catchup=False,
    max_active_runs=1,  # one run at a time on one output
    default_args={"retries": 3, "retry_delay": datetime.timedelta(minutes=10)},
    tags=["imagebeam"],
) as dag:

    @task
    def extract() -> None:
        """Only new and replaced images are embedded."""
        images, output = Variable.get("imagebeam_input", INPUT), Variable.get("imagebeam_output", OUTPUT)
        run_imagebeam("extract", "--input", images, "--output", output)

    @task
    def train() -> None:
        """On all rows that are there."""
        output = Variable.get("imagebeam_output", OUTPUT)
        classifier = Variable.get("imagebeam_classifier", CLASSIFIER)
        run_imagebeam("train", "--embeddings", output, "--output", classifier, "--overwrite")

    extract() >> train()
