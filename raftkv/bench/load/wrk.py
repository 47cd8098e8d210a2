"""The same load by wrk (https://github.com/wg/wrk), a generator in C that others know well."""

import resource
import shutil
import subprocess
from pathlib import Path

import msgspec

from raftkv.bench.load.run_load import LoadError
from raftkv.bench.load.workload import Workload

_SCRIPT = Path(__file__).with_suffix(".lua")
_GRACE_S = 30.0
_KINDS = {"put", "get"}


class WrkResult(msgspec.Struct, frozen=True):
    """What wrk says of its run, and what it cost."""

    requests_per_s: float
    p50_s: float
    p99_s: float
    failed: int
    cpu_s: float
    """Processor time of wrk."""
    requests: int


class _Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the script writes in the end."""

    requests: int
    duration_us: int
    p50_us: int
    p99_us: int
    failed: int


def find_wrk() -> str:
    """Return the path of wrk.

    Raises:
        LoadError: It is not installed.
    """
    executable = shutil.which("wrk")
    if executable is None:
        raise LoadError("there is no wrk: apt-get install wrk")
    return executable


def run_wrk(
    address: tuple[str, int], workload: Workload, connections: int, seconds: int, scratch: Path
) -> WrkResult:
    """Make the load once, in a closed loop from one thread of wrk.

    Args:
        address: Of the one node that is asked: wrk takes no more.
        workload: ``put`` or ``get``; keys are picked uniformly.
        connections: How many.
        seconds: How long.
        scratch: A directory, for the names of the keys.

    Raises:
        LoadError: wrk is missing, or failed.
        ValueError: Another workload.
    """
    if workload.kind not in _KINDS:
        raise ValueError(f"wrk makes {' and '.join(sorted(_KINDS))}, not {workload.kind}")
    executable = find_wrk()
    keys = scratch / "keys"
    keys.write_bytes(b"".join(workload.key(number) + b"\n" for number in range(workload.keys)))
    host, port = address
    command = (
        *(executable, "--threads=1", f"--connections={connections}", f"--duration={seconds}s"),
        *(f"--script={_SCRIPT}", f"http://{host}:{port}", "--"),
        *(workload.kind, str(keys), str(workload.value_bytes)),
    )
    cpu_before_s = _cpu_of_children_s()
    try:
        ended = subprocess.run(  # noqa: S603 -- found by its name, asked by us
            command, capture_output=True, text=True, check=False, timeout=seconds + _GRACE_S
        )
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"wrk did not end within {_GRACE_S:.0f} s of its time") from error
    return result_of(ended.stdout, ended.stderr, _cpu_of_children_s() - cpu_before_s)


def result_of(stdout: str, stderr: str, cpu_s: float) -> WrkResult:
    """Read what wrk and the script have said.

    Raises:
        LoadError: It is no result; the message has what wrk said instead.
    """
    try:
        said = msgspec.json.decode(stderr, type=_Said)
    except msgspec.DecodeError as error:
        raise LoadError(f"wrk failed: {(stderr + stdout).strip()}") from error
    return WrkResult(
        requests_per_s=1e6 * (said.requests - said.failed) / said.duration_us,
        p50_s=said.p50_us / 1e6,
        p99_s=said.p99_us / 1e6,
        failed=said.failed,
        cpu_s=cpu_s,
        requests=said.requests,
    )


def _cpu_of_children_s() -> float:
    """Processor time of all children that have ended; no other may end while wrk runs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
