"""``raftkv chaos``: real processes under real faults; docs/chaos.md explains it."""

import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from raftkv.chaos.disks import private_mounts
from raftkv.chaos.errors import ChaosError
from raftkv.chaos.etcd_target import EtcdTarget
from raftkv.chaos.plan import FAULTS
from raftkv.chaos.raftkv_target import SNAPSHOT_AFTER_ENTRIES, obstacle
from raftkv.chaos.recorder import ENDS
from raftkv.chaos.run import Progress, Run, planned, run_chaos
from raftkv.chaos.settings import MIXED, WORKLOADS, Settings
from raftkv.check.verdict import Verdict
from raftkv.cli import consoles
from raftkv.cli.durations import ALIAS, Duration
from raftkv.cli.endpoints import endpoints_option
from raftkv.core.visible import visible

EXIT_CODES = {Verdict.VALID: 0, Verdict.VIOLATION: 1, Verdict.UNKNOWN: 2}
EXIT_NOT_RUN = 3
REASONS_MAX = 20
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command("chaos")
@click.option(
    "--duration",
    ALIAS,
    "duration_s",
    cls=Duration,
    help="Seconds.",
    type=click.FloatRange(1),
    default=60,
    show_default=True,
)
@click.option("--seed", type=click.IntRange(0), help="Decides the plan.  [default: a new one]")
@click.option("--nodes", type=click.IntRange(1, 9), default=3, show_default=True)
@click.option("--shards", type=click.IntRange(1, 64), default=4, show_default=True)
@click.option(
    "--replicas",
    type=click.IntRange(1, 7),
    help="Of each shard.  [default: 3, or as many as there are nodes]",
)
@click.option(
    "--workload",
    type=click.Choice((*WORKLOADS, MIXED)),
    default=MIXED,
    show_default=True,
)
@click.option(
    "--faults",
    help=f"Some of {', '.join(FAULTS)}; or all, which leaves out what this machine cannot do; or "
    "none.  [default: all]",
)
@click.option("--clients", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option(
    "--rate",
    "rate_per_s",
    type=click.FloatRange(0.1),
    default=200,
    show_default=True,
    help="Operations a second of all clients together.",
)
@click.option(
    "--election-timeout-ms",
    type=click.IntRange(100, 60_000),
    default=1000,
    show_default=True,
    help="Of the nodes; faults hold for two to three of them.",
)
@click.option(
    "--snapshot-after-entries",
    type=click.IntRange(1),
    default=SNAPSHOT_AFTER_ENTRIES,
    show_default=True,
    help="Of the nodes: how often they write snapshots and cut their logs.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A new directory for history, logs and report.  [default: chaos-SEED]",
)
@click.option(
    "--target",
    type=click.Choice(("raftkv", "etcd")),
    default="raftkv",
    show_default=True,
    help="What to start on this machine.",
)
@endpoints_option("Use a cluster that runs already, and do nothing else to it.")
@click.option("--api", type=click.Choice(("raftkv", "etcd")), help="What is at --endpoints.")
@click.option("--token", envvar="RAFTKV_TOKEN", show_envvar=True, help="For --endpoints.")
@click.option(
    "--ca", type=click.Path(exists=True, dir_okay=False), help="CA file for https --endpoints."
)
def chaos_command(
    *,
    duration_s: float,
    seed: int | None,
    nodes: int,
    shards: int,
    replicas: int | None,
    workload: str,
    faults: str | None,
    clients: int,
    rate_per_s: float,
    election_timeout_ms: int,
    snapshot_after_entries: int,
    out: Path | None,
    target: str,
    endpoints: tuple[str, ...],
    api: str | None,
    token: str | None,
    ca: str | None,
) -> None:
    """Hurt a cluster while clients use it, and judge what they saw.

    Starts nodes of its own, does what --faults says by a plan that the seed decides, heals
    everything, reads every key, compares the replicas, and checks that the history is
    linearizable. Ends with 0 if it is, 1 if not, 2 if nobody can tell, 3 if it could not run.
    """
    if seed is None:
        seed = secrets.randbelow(2**31)
    system = (api or "raftkv") if endpoints else target
    _end_like_ctrl_c()
    private_mounts()
    chosen, left_out = _faults(faults, system, nodes, own=not endpoints)
    if left_out:
        click.echo(f"left out: {left_out}", err=True)
    settings = Settings(
        out=(out or Path(f"chaos-{seed}")).absolute(),
        seed=seed,
        duration_s=duration_s,
        nodes=nodes,
        shards=shards,
        replicas=replicas,
        workload=workload,
        faults=chosen,
        clients=clients,
        rate_per_s=rate_per_s,
        system="etcd" if system == "etcd" else "raftkv",
        endpoints=endpoints,
        token=token,
        ca=ca,
        election_timeout_ms=election_timeout_ms,
        snapshot_after_entries=snapshot_after_entries,
    )
    sys.exit(_run(settings))


def _faults(text: str | None, system: str, nodes: int, *, own: bool) -> tuple[tuple[str, ...], str]:
    """The faults that are meant, in the order of the table of all; which are left out, and why.

    Left out is only what nobody has named.
    """
    if text == "none" or (text is None and not own):
        return (), ""
    if text not in {None, "all"}:
        return tuple(dict.fromkeys(str(text).split(","))), ""
    if system == "etcd":
        return tuple(sorted(EtcdTarget.supported)), ""
    possible: list[str] = []
    left_out: dict[str, list[str]] = {}
    for kind in FAULTS:
        why = obstacle(kind, nodes)
        (possible if why is None else left_out.setdefault(why, [])).append(kind)
    told = [f"{', '.join(kinds)} ({why})" for why, kinds in left_out.items()]
    return tuple(possible), "; ".join(told)


def _end_like_ctrl_c() -> None:
    """Have all signals that end a program unwind it, once: what follows must not be interrupted."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in _STOP_SIGNALS:
        signal.signal(number, stop)


def _run(settings: Settings) -> int:
    console = consoles.console(stderr=True)
    try:
        settings.check()
        _announce(settings, console)
        with _bar(console) as bar:
            run = run_chaos(settings, bar)
    except ChaosError as error:
        click.echo(f"raftkv: {visible(str(error))}", err=True)
        return EXIT_NOT_RUN
    except KeyboardInterrupt:
        click.echo("raftkv: interrupted; everything was stopped and taken away", err=True)
        return EXIT_NOT_RUN
    _tell(run, settings, consoles.console())
    return EXIT_CODES[run.verdict]


def _announce(settings: Settings, console: Console) -> None:
    prefix = "n" if settings.system == "raftkv" else "e"
    names = tuple(f"{prefix}{number}" for number in range(1, settings.nodes + 1))
    console.print(f"seed {settings.seed}, into {settings.out}", highlight=False)
    for round_ in planned(settings, names):
        console.print(str(round_), style="dim", highlight=False)


class _Shown:
    """Shows how far a run is, in one line."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", counts="")

    def __call__(self, now: Progress) -> None:
        running = f": {', '.join(now.running)}" if now.running else ""
        operations = sum(now.counts.values())
        errors = now.counts.get("refused", 0) + now.counts.get("unknown", 0)
        self._bar.update(
            self._task,
            total=now.duration_s,
            completed=min(now.elapsed_s, now.duration_s),
            description=f"{now.phase}{running}",
            counts=f"{operations} operations, {errors} errors, "
            f"{now.effective}/{now.faults} faults seen",
        )


@contextmanager
def _bar(console: Console) -> Iterator[_Shown]:
    columns = (
        BarColumn(bar_width=24),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[counts]}"),
        TextColumn("{task.description}", style="dim"),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        yield _Shown(bar)


def _tell(run: Run, settings: Settings, console: Console) -> None:
    table = Table("fault", "done", "seen")
    for kind, count in sorted(run.faults.items()):
        table.add_row(kind, str(count), str(run.effective.get(kind, 0)))
    if run.faults:
        console.print(table)
    counts = ", ".join(f"{run.counts.get(end, 0)} {end}" for end in ENDS)
    keys = len(run.judgement.result.parts)
    console.print(
        f"{counts} on {keys} keys, at most {run.under_way_max} at once; "
        f"{run.leader_changes} leader changes; report: {run.report}",
        highlight=False,
        soft_wrap=True,
    )
    for reason in run.judgement.reasons[:REASONS_MAX]:
        console.print(reason, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{run.verdict.value} (seed {settings.seed})", highlight=False)
