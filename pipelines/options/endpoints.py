"""Check that a runner's servers answer before preparing a job for them."""

from __future__ import annotations

import socket
from typing import Any

from pipelines.common.beam_flags import runner_class
from transforms.core.errors import ImagebeamError

SECONDS = 10.0
"""How long an endpoint may take to answer."""

_ASK_A_JOB_SERVER = ("flink", "kafkastreams", "portable", "prism", "spark")
"""Runners that hand the job to the server of `--job_endpoint` if there is one."""


def check_endpoints(values: dict[str, Any]) -> None:
    """Refuse a job server or Flink cluster that does not answer, or that the runner needs and is not told of.

    Args:
        values: all of Beam's options, as `PipelineOptions.get_all_options` gives them.

    Raises:
        ImagebeamError: naming the flag, its value and what happened.
    """
    runner = runner_class(values.get("runner")).removesuffix("runner")
    endpoint, master = values.get("job_endpoint"), values.get("flink_master") or ""
    if runner == "portable" and not endpoint:
        raise _not_told("--job_endpoint HOST:PORT, where its job server listens", values)
    if runner == "spark" and values.get("spark_submit_uber_jar") and not (endpoint or values.get("spark_rest_url")):
        raise _not_told("--spark_rest_url URL, where --spark_submit_uber_jar sends the jar", values)
    if runner in _ASK_A_JOB_SERVER and endpoint and endpoint != "embed":
        _check_grpc("--job_endpoint", endpoint)
    elif runner == "flink" and ":" in master and not master.startswith("["):
        _check_tcp("--flink_master", master)


def _not_told(flag: str, values: dict[str, Any]) -> ImagebeamError:
    return ImagebeamError(
        f"The runner needs {flag}. Received: --runner {values['runner']} without. Nothing was started."
    )


def _check_grpc(flag: str, endpoint: str) -> None:
    import grpc  # type: ignore[import-untyped]

    with grpc.insecure_channel(endpoint) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=SECONDS)
        except grpc.FutureTimeoutError:
            raise _no_answer(flag, endpoint, f"no job server answered within {SECONDS:.0f} s") from None


def _check_tcp(flag: str, address: str) -> None:
    host, _, port = address.rpartition("://")[2].rstrip("/").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS).close()
    except (OSError, ValueError) as error:
        raise _no_answer(flag, address, str(error)) from error


def _no_answer(flag: str, endpoint: str, reason: str) -> ImagebeamError:
    return ImagebeamError(
        f"Nothing answers at {flag} {endpoint}: {reason}. Nothing was started. Check that the server runs there, and "
        "that this machine may reach it."
    )
