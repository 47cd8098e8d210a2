"""``raftkv init`` and ``raftkv serve``: one node's directory, one node's life."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn, TypeVar

import click

from raftkv.cli.config import load
from raftkv.core.errors import StartError
from raftkv.core.visible import visible_lines
from raftkv.engine.config import NodeConfig
from raftkv.engine.pidfile import PidFile
from raftkv.rpc import logs
from raftkv.rpc.process import open_standard_streams

EXIT_REFUSED = 1
EXAMPLE = Path(__file__).with_name("example.toml")
_TERMINAL = "/dev/tty"

_Command = TypeVar("_Command", bound=Callable[..., None])


def config_options(command: _Command) -> _Command:
    """Add the options that say which node of which configuration is meant."""
    command = click.option(
        "--node",
        envvar="RAFTKV_NODE",
        show_envvar=True,
        help="Which node this is, instead of node.name: one file can serve all nodes.",
    )(command)
    return click.option(
        "--config",
        "config_file",
        envvar="RAFTKV_CONFIG",
        show_envvar=True,
        type=click.Path(path_type=Path),
        default=Path("node.toml"),
        show_default=True,
        help="The node's configuration.",
    )(command)


def refuse(message: object) -> NoReturn:
    """End with one line for the operator."""
    click.echo(f"raftkv: {visible_lines(str(message))}", err=True)
    sys.exit(EXIT_REFUSED)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """End with one line for the operator, behind what is logged, where a node cannot start."""
    try:
        yield
    except StartError as error:
        logs.say(f"raftkv: {error}")
        sys.exit(EXIT_REFUSED)


def load_or_refuse(config_file: Path, node: str | None = None) -> NodeConfig:
    """Read the configuration, or end with what is wrong in it."""
    with refusing():
        return load(config_file, node=node)


@click.command("init")
@config_options
@click.option(
    "--if-needed",
    is_flag=True,
    help="Succeed if the directory is this node's already. Beware: after the loss of a disk this "
    "makes an empty node, which the others will refuse.",
)
@click.option(
    "--example",
    is_flag=True,
    help="Only print a configuration with every option explained, to begin with.",
)
def init_command(config_file: Path, node: str | None, *, if_needed: bool, example: bool) -> None:
    """Make the data directory of a new node and mint its identity."""
    if example:
        click.echo(EXAMPLE.read_text(encoding="utf-8"), nl=False)
        return
    from raftkv.storage.data_dir import (  # noqa: PLC0415 -- after a bad configuration is refused
        init_data_dir,
        open_data_dir,
    )
    from raftkv.storage.disk import RealDisk  # noqa: PLC0415 -- same

    config = load_or_refuse(config_file, node)
    disk, path = RealDisk(), Path(config.node.data_dir)
    identity = (config.cluster.id, config.node.name)
    with refusing():
        if if_needed and (path / "identity").exists():
            open_data_dir(disk, path, *identity).close()
            click.echo(f"{path} is the data directory of node {config.node.name} already")
            return
        init_data_dir(disk, path, *identity, segment_bytes=config.limits.wal_segment_bytes)
    click.echo(f"made {path} for node {config.node.name} of cluster {config.cluster.id}")


@click.command("serve")
@config_options
@click.option(
    "--until-eof",
    is_flag=True,
    help="Stop when standard input ends, so that the node does not outlive its supervisor.",
)
def serve_command(config_file: Path, node: str | None, *, until_eof: bool) -> None:
    """Run one node until SIGTERM or Ctrl-C.

    On SIGHUP it reads certificates, tokens and the log's settings again.

    The process leads a process group of its own; its HTTP workers are in it and end with it.
    """
    open_standard_streams()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the node can do what it asks for
    config = load_or_refuse(config_file, node)
    logs.set_up(config.node.name, config.log.format, config.log.level)
    logs.speak_for_python()
    from raftkv.engine.node import run_node  # noqa: PLC0415 -- same as above

    if until_eof:
        threading.Thread(target=_stop_at_eof, name="until-eof", daemon=True).start()
    pid_file = config.node.pid_file
    with (
        refusing(),
        _own_process_group(),
        PidFile(Path(pid_file)) if pid_file else nullcontext(),
    ):
        run_node(config, lambda: load(config_file, node=node))


def _stop_at_eof() -> None:
    """Wait for the supervisor's end, then stop like on SIGTERM."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _own_process_group() -> Iterator[None]:
    """Lead a process group, so that one signal reaches the whole node and nothing else.

    Where the node runs in the foreground of a terminal without leading its group (started by a
    script, by make), the new group takes the foreground over: Ctrl-C must still reach it.
    """
    old_group = os.getpgrp()
    if old_group == os.getpid():
        yield
        return
    os.setpgid(0, 0)
    terminal = _terminal_in_foreground(old_group)
    try:
        if terminal is not None:
            _set_foreground(terminal, os.getpid())
        yield
    finally:
        if terminal is not None:
            _set_foreground(terminal, old_group)
            os.close(terminal)


def _terminal_in_foreground(group: int) -> int | None:
    """The controlling terminal, if ``group`` is the one that it talks to."""
    try:
        terminal = os.open(_TERMINAL, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None  # no terminal: nobody can press Ctrl-C
    if os.tcgetpgrp(terminal) == group:
        return terminal
    os.close(terminal)
    return None


def _set_foreground(terminal: int, group: int) -> None:
    # A group in the background that does this is stopped by SIGTTOU unless it ignores it.
    old = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        # The old group can be gone by now; then there is nobody to give the terminal back to.
        with contextlib.suppress(OSError):
            os.tcsetpgrp(terminal, group)
    finally:
        signal.signal(signal.SIGTTOU, old)
