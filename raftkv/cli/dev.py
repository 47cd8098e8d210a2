"""``raftkv dev``: a local cluster of real processes in the foreground."""

import signal
import sys
import time
from pathlib import Path
from types import FrameType

import click

from raftkv.engine.config import SHARDS_MAX
from raftkv.testing.layout import LayoutError
from raftkv.testing.local_cluster import ClusterError, LocalCluster

POLL_S = 0.2
EXIT_REFUSED = 1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Stopped(BaseException):
    """A signal asked for the end; not an Exception, so that nothing on the way swallows it."""


@click.command("dev")
@click.option("--nodes", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--shards", type=click.IntRange(1, SHARDS_MAX), default=4, show_default=True)
@click.option(
    "--replicas",
    type=click.IntRange(1, 7),
    help="Of each shard; by default 3, or as many as there are nodes.",
)
@click.option(
    "--http-port",
    type=click.IntRange(1, 65_535),
    default=8000,
    show_default=True,
    help="Port of the first node; the others follow.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("data"),
    show_default=True,
    help="Everything is kept here; the same directory has the same data again.",
)
def dev_command(
    *, nodes: int, shards: int, replicas: int | None, http_port: int, data_dir: Path
) -> None:
    """Run a local cluster until Ctrl-C.

    A node that dies is not restarted: raftkv serve --config DIR/n2/node.toml brings it back, and
    Ctrl-C here stops it too.
    """
    if replicas is not None and replicas > nodes:
        raise click.UsageError(f"--replicas {replicas} needs at least as many --nodes, not {nodes}")
    if http_port + nodes - 1 > 65_535:  # noqa: PLR2004 -- the last port there is
        raise click.UsageError(f"--http-port {http_port} leaves no room for {nodes} nodes")
    cluster = LocalCluster(
        data_dir,
        nodes=nodes,
        shards=shards,
        replicas=replicas,
        http_ports=range(http_port, http_port + nodes),
    )
    for number in _SIGNALS:
        # Under nohup the end of the terminal is not the end of the cluster.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        cluster.start()
        _introduce(cluster)
        _watch(cluster)
    except _Stopped:
        click.echo("stopping")
    except (ClusterError, LayoutError, OSError) as error:
        click.echo(f"raftkv: {error}", err=True)
        sys.exit(EXIT_REFUSED)
    finally:
        # A second Ctrl-C must not cut the clean stop short; kill -9 remains.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        cluster.stop()


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _Stopped


def _introduce(cluster: LocalCluster) -> None:
    """Say where everything is; the line ``ready`` is for scripts to wait for."""
    for node in cluster.layout.nodes:
        click.echo(f"{node.name}  {node.url}  pid {cluster.pid(node.name)}  log {node.log}")
    url = cluster.urls[0]
    click.echo("ready")
    click.echo(
        "\nTry:\n"
        f"  curl -X PUT --data hello {url}/v1/kv/greeting\n"
        f"  curl {cluster.urls[-1]}/v1/kv/greeting\n"
        f"and open {url}/ to see the shards. Ctrl-C stops the cluster, its data stays in\n"
        f"{cluster.directory}\n"
        "For the raftkv command and raftkv.Client() in another shell:\n"
        f"  export RAFTKV_ENDPOINTS={','.join(cluster.urls)}"
    )
    # A pipe is not a terminal: without this the line would wait for the buffer to fill.
    sys.stdout.flush()


def _watch(cluster: LocalCluster) -> None:
    """Tell of each node that ends, until a signal comes."""
    running = set(cluster.names)
    while True:
        for name in sorted(running):
            code = cluster.process(name).exit_code
            if code is not None:
                running.discard(name)
                click.echo(f"{name} {_ending(code)}; its log is {cluster.node(name).log}")
                click.echo(f"  raftkv serve --config {cluster.node(name).config} brings it back")
                sys.stdout.flush()
        time.sleep(POLL_S)


def _ending(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
