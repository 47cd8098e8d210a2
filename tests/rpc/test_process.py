"""What a process does about its descriptors, when they are closed, many, or none are left."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raftkv.rpc import process


def in_child(work: Callable[[], str]) -> str:
    """Do something in a forked child, which may close what it likes; return what it says."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writing, 0)  # below whatever the child closes
        try:
            said = work()
        except BaseException as error:  # noqa: BLE001 -- there is nobody above
            said = repr(error)
        os.write(0, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


@pytest.mark.parametrize("system_call", [process._CLOSE_RANGE, -1], ids=["new", "old"])
def test_every_descriptor_is_closed(system_call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On kernels that can do it at once and on others, and where there is none left to look."""
    monkeypatch.setattr(process, "_CLOSE_RANGE", system_call)
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(50)]
    os.set_inheritable(files[3], True)  # noqa: FBT003 -- its order

    def work() -> str:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (files[-1] + 1, hard))
        process.close_from(3)
        return ",".join(sorted(path.name for path in Path("/proc/self/fd").iterdir()))

    assert in_child(work) == "0,1,2,3", "3 is that of the list itself"
    for file in files:
        os.close(file)


def test_as_many_files_as_it_may_have() -> None:
    """The soft limit is for programs that use select()."""

    def work() -> str:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        process.raise_file_limit()
        return str(resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard))

    assert in_child(work) == "True"


def test_memory_is_known_without_a_descriptor() -> None:
    """A worker that could not report ended, and with it all of its connections."""

    def work() -> str:
        process.resident_bytes()
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)
        return str(process.resident_bytes() > 2**20)

    assert in_child(work) == "True"


USES_STREAMS = """
import os, sys
from raftkv.rpc.process import open_standard_streams
open_standard_streams()
sys.stderr.write("to nobody")
sys.stdout.write("to nobody")
numbers = [os.readlink(f"/proc/self/fd/{n}") for n in range(3)]
os.write(int(sys.argv[1]), str((numbers, sys.stdin.read(), os.get_inheritable(0))).encode())
"""


def test_closed_standard_streams_are_opened() -> None:
    """As /dev/null: the next socket would get such a number, and be written to as an output."""
    reading, writing = os.pipe()
    subprocess.run(  # noqa: S602 -- our own, and only a shell can close a stream
        f"exec '{sys.executable}' -c '{USES_STREAMS}' {writing} <&- >&- 2>&-",
        shell=True,
        check=True,
        pass_fds=(writing,),
    )
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "(['/dev/null', '/dev/null', '/dev/null'], '', True)"
