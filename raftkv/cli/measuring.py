"""What all commands of ``raftkv bench`` share: options, a clean end, the report."""

import contextlib
import functools
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import click
from rich.table import Table

from raftkv.bench.load.filling import FillError
from raftkv.bench.load.first_write import NoWriteError
from raftkv.bench.load.run_load import LoadError
from raftkv.bench.measure import Measure, Setting
from raftkv.bench.report import Occasion, Report, publish
from raftkv.cli import consoles
from raftkv.client import RaftkvError
from raftkv.core.visible import visible
from raftkv.testing import ClusterError


def _stop(_number: int, _frame: FrameType | None) -> None:
    """End as by Ctrl-C, so that the cluster is stopped and its directory removed."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def ending_cleanly() -> Iterator[None]:
    """Say in one line what went wrong; leave nothing behind at SIGTERM or Ctrl-C."""
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    except (ClusterError, RaftkvError, LoadError, FillError, NoWriteError, OSError) as error:
        click.echo(f"raftkv: {visible(str(error))}", err=True)
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, before)


def shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that all share."""
    into = click.option(
        "--json",
        "json_path",
        type=click.Path(dir_okay=False, writable=True, path_type=Path),
        help="Also write everything that was measured into this file.",
    )
    beneath = click.option(
        "--dir",
        "parent",
        type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
        help="Where the cluster's directory is made, and removed again: choose the disk here.",
    )
    return into(beneath(command))


def tell(line: str) -> None:
    """Say how far a measurement is."""
    consoles.console(stderr=True).print(line, style="dim", highlight=False)


def measuring(
    *, table: Callable[[Report], Table] | None = None, targets_bind: bool = False
) -> Callable[[Callable[..., Measure]], Callable[..., None]]:
    """Make a command of what makes a measure of its options: carry it out, and show the report.

    Args:
        table: what shows the figures better than a line for each does.
        targets_bind: a target that is missed ends the command with code 1.
    """

    def decorate(plan: Callable[..., Measure]) -> Callable[..., None]:
        @shared_options
        @functools.wraps(plan)
        def command(*, json_path: Path | None, parent: Path | None, **options: object) -> None:
            measure = plan(**options)
            setting = Setting(Occasion.now(), given_command(), parent, tell)
            with ending_cleanly():
                report = measure(setting)
                shown = None if table is None else table(report)
                publish(report, json_path, consoles.console(), shown)
            if targets_bind and any(figure.met is False for figure in report.figures):
                sys.exit(1)

        return command

    return decorate


def given_command() -> str:
    """The command line that is being carried out, as a shell takes it."""
    return shlex.join(["raftkv", *sys.argv[1:]])
