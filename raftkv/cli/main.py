"""The ``raftkv`` command: what each subcommand is called and which module holds it.

A subcommand's module is imported when it is run: ``raftkv get`` must not wait for the imports of
``raftkv serve``.
"""

import contextlib
import errno
import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

import click

from raftkv.version import __version__

EXIT_INTERRUPTED = 130
"""Ctrl-C, by a shell's convention (128 and the number of the signal)."""
EXIT_OUTPUT = 74
"""The output could not be written (EX_IOERR of sysexits.h); what was asked for may be done."""
EXIT_NO_SERVER = 69
"""A command of the server, which is not installed (EX_UNAVAILABLE of sysexits.h)."""

# name: (module, the click command in it, one line for the overview)
COMMANDS = {
    "dev": ("raftkv.cli.dev", "dev_command", "Run a local cluster in the foreground."),
    "init": ("raftkv.cli.serve", "init_command", "Make the data directory of a node."),
    "serve": ("raftkv.cli.serve", "serve_command", "Run one node."),
    "ready": ("raftkv.cli.ready", "ready_command", "Ask whether this machine's node is ready."),
    "get": ("raftkv.cli.data", "get_command", "Read one key."),
    "put": ("raftkv.cli.data", "put_command", "Set one key."),
    "del": ("raftkv.cli.data", "del_command", "Remove one key."),
    "scan": ("raftkv.cli.data", "scan_command", "List keys in byte order."),
    "backup": ("raftkv.cli.backup", "backup_command", "Write all keys and values to a file."),
    "restore": ("raftkv.cli.backup", "restore_command", "Write a backup into a cluster."),
    "status": ("raftkv.cli.status", "status_command", "Say how the cluster is: health first."),
    "top": ("raftkv.cli.status", "top_command", "Watch load, lag and disks live."),
    "explain": ("raftkv.cli.operators", "explain_command", "Show where a key lives and why."),
    "transfer-leader": (
        "raftkv.cli.operators",
        "transfer_command",
        "Hand the leadership of a shard to another node.",
    ),
    "ring": ("raftkv.cli.ring", "ring_command", "Show how evenly keys spread over shards."),
    "certs": ("raftkv.cli.certs", "certs_command", "Make certificates for mutual TLS."),
    "bench": ("raftkv.cli.bench", "bench_command", "Measure a cluster on this machine."),
    "chaos": ("raftkv.cli.chaos", "chaos_command", "Hurt a cluster and judge what clients saw."),
    "sim": ("raftkv.cli.sim", "sim_command", "Simulate clusters under faults, from seeds."),
    "check": ("raftkv.cli.check", "check_command", "Judge a recorded history."),
    "token": ("raftkv.cli.token", "token_command", "Make a bearer token for HTTP."),
}

SERVER_COMMANDS = frozenset(
    {"dev", "init", "serve", "ready", "ring", "certs", "bench", "chaos", "sim"}
)
"""Commands that run a node or what it is made of; the others need only what the client needs."""

SERVER_MODULES = (
    "cryptography",
    "flask",
    "granian",
    "mmh3",
    "prometheus_client",
    "pysyncobj",
    "sortedcontainers",
    "uvloop",
    "werkzeug",
)
"""What the extra ``server`` of setup.cfg installs."""


class NoServerError(click.ClickException):
    """The command is one of the server's, and what that needs is not installed."""

    exit_code = EXIT_NO_SERVER

    def __init__(self, command: str, missing: Sequence[str]) -> None:
        super().__init__(
            f"{command} needs the server ({', '.join(missing)} cannot be imported): "
            "pip install 'raftkv[server]', or '.[server]' in a checkout"
        )

    def show(self, file: IO[str] | None = None) -> None:
        """Print one line, as every refusal of a command is."""
        click.echo(f"raftkv: {self.message}", file=file, err=True)


def require_server(command: str) -> None:
    """Raise :class:`NoServerError` unless all that a node needs is installed; import none of it."""
    missing = [name for name in SERVER_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise NoServerError(command, missing)


_OUTPUT_ERRORS = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


class _OutputError(Exception):
    """Standard output takes no more."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


@contextlib.contextmanager
def _output_watched() -> Iterator[None]:
    """Tell output that could not be written from other errors: click would end with 1.

    A command's own exit code counts only once all that it said has been written.
    """
    try:
        try:
            yield
        except (SystemExit, click.exceptions.Exit) as ended:
            if isinstance(ended.__context__, BrokenPipeError):
                raise ended.__context__ from None  # rich, too, would end with 1
            sys.stdout.flush()
            raise
    except OSError as error:
        # A file that a command names has its own error; standard output has no name.
        if error.errno in _OUTPUT_ERRORS and error.filename is None:
            raise _OutputError(error) from error
        raise


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used; the overview imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order in which a newcomer meets them."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        if cmd_name in SERVER_COMMANDS:
            require_server(cmd_name)
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 -- the table above is ours
        return command

    def make_context(self, *arguments: Any, **named: Any) -> click.Context:
        """Parse; ``--help`` and ``--version`` write here."""
        with _output_watched():
            return super().make_context(*arguments, **named)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        with _output_watched():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the overview from the table."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="raftkv")
def cli() -> None:
    """A strongly consistent, sharded key-value store.

    raftkv dev --nodes 3 starts a cluster on this machine; raftkv put, get and scan use it.
    """


def main() -> None:
    """Run the command of this process's arguments, and end with its code."""
    sys.exit(run())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; click's own would be 1, which means "no".

    Args:
        arguments: Those of this process by default.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A sign that the terminal cannot show is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    try:
        with _output_watched():
            code = cli.main(arguments, prog_name="raftkv", standalone_mode=False)
            sys.stdout.flush()
    except click.Abort:
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except _OutputError as error:
        return _output_failed(error.reason)
    return code if isinstance(code, int) else 0


def _output_failed(error: OSError) -> int:
    # Nothing may be tried again when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno != errno.EPIPE:  # whoever closed a pipe wants no more, and no message
        click.echo(f"raftkv: the output could not be written: {error.strerror}", err=True)
    return EXIT_OUTPUT


if __name__ == "__main__":
    main()
