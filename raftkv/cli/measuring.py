"""What all commands of ``raftkv bench`` share: options, a clean end, the report."""

import contextlib
import functools
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import click

from raftkv.bench.filling import FillError
from raftkv.bench.first_write import NoWriteError
from raftkv.bench.report import Report, publish
from raftkv.bench.run_load import LoadError
from raftkv.cli import consoles
from raftkv.client import RaftkvError
from raftkv.core.visible import visible
from raftkv.testing import ClusterError

Measure = Callable[..., Report]


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


def measuring(measure: Measure) -> Callable[..., None]:
    """Add the options that all share, and show what was measured."""

    @shared_options
    @functools.wraps(measure)
    def command(*, json_path: Path | None, parent: Path | None, **options: object) -> None:
        with ending_cleanly():
            report = measure(parent=parent, progress=tell, **options)
            publish(report, json_path, consoles.console())

    return command
