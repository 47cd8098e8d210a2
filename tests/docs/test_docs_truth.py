"""What the documentation says in numbers and names is what the code has.

Each claim is a sentence of a page with a gap: the code fills it, and the sentence must be there.
"""

import importlib
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from raftkv import Client
from raftkv.cli.main import COMMANDS, EXIT_NO_SERVER, SERVER_COMMANDS, cli
from raftkv.client import attempts
from raftkv.core import operations, ring
from raftkv.core.shard import expiry, sections, snapshot, transactions
from raftkv.engine import agreement, config, gather, lanes, map_file, node
from raftkv.engine.connection import LinkLimits
from raftkv.engine.workers import web_config
from raftkv.raft import replication, seams, snapshot_transfer, windows
from raftkv.raft.proposals import Limits as GroupLimits
from raftkv.rpc import server
from raftkv.rpc import web_config as web
from raftkv.storage import snapshots, wal_format
from raftkv.web import worker

TOP = Path(__file__).resolve().parents[2]
DOCS = TOP / "docs"


def size(count: int) -> str:
    """Bytes as the pages write them."""
    for unit, name in ((2**20, "MiB"), (2**10, "KiB")):
        if count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count} bytes"


def parameter(name: str) -> str:
    """The default of an argument of the client's constructor."""
    return f"{inspect.signature(Client).parameters[name].default:g}"


HTTP, LIMITS = config.HttpOptions(), config.LimitOptions()
WEB, GROUP, LINK, CHUNK = web.Limits(), GroupLimits(), LinkLimits(), snapshot_transfer

CLAIMS = [
    ("storage.md", f"synced every {size(snapshots._SYNC_BYTES)} ("),
    ("storage.md", f"`posix_fallocate`, {size(LIMITS.wal_segment_bytes)}, `wal_segment_bytes`"),
    ("storage.md", f"| format, {wal_format.FORMAT} |"),
    ("storage.md", f"Each begins with a sector of {wal_format.SECTOR_BYTES} bytes"),
    (
        "storage.md",
        f"format of their own ({snapshot.SNAPSHOT_FORMAT}; `raftkv/core/shard/snapshot.py`)",
    ),
    ("storage.md", f"({operations.BATCH_FORMAT}; `raftkv/core/operations.py`)"),
    ("storage.md", f"snapshot's record above {size(sections.PART_BYTES_MAX)} is written in parts"),
    ("partitioning.md", f"positions at {ring.VNODES_DEFAULT} points"),
    ("partitioning.md", f"at most {config.SHARDS_MAX} shards"),
    ("operations.md", f"[at most {config.SHARDS_MAX}](partitioning.md#how-many)"),
    ("http-api.md", f"| key | 1 to {operations.KEY_BYTES_MAX:,} bytes |"),
    ("http-api.md", f"| value | {size(HTTP.value_bytes_max)}, `value_bytes_max` |"),
    (
        "http-api.md",
        f"| batch | {WEB.batch_operations_max:,} operations, {size(WEB.batch_bytes_max)} |",
    ),
    (
        "http-api.md",
        f"{WEB.txn_operations_max} comparisons, {size(WEB.txn_bytes_max)} |",
    ),
    (
        "http-api.md",
        f"| page of a scan | {WEB.scan_limit_max:,} entries, {size(WEB.page_bytes_max)} |",
    ),
    ("http-api.md", f"| body | complete within {WEB.body_timeout_s:g} s |"),
    ("http-api.md", f"| bodies in memory | {size(WEB.bodies_bytes_max)} a worker"),
    ("http-api.md", f"that are not read | {size(WEB.unread_bytes_max)} a worker"),
    ("http-api.md", f"such an answer | given up after {WEB.unread_wait_s:g} s |"),
    ("http-api.md", f"of work: {WEB.in_flight_min} to {WEB.in_flight_max:,} a worker"),
    (
        "http-api.md",
        f"for a shard | {GROUP.waiting_operations_max:,}, {size(GROUP.waiting_bytes_max)}, and",
    ),
    ("http-api.md", f"complete within {worker.HEADER_TIMEOUT_MS // 1000} s; header fields"),
    ("client.md", f"`attempt_timeout_s` ({parameter('attempt_timeout_s')} s)"),
    ("client.md", f"| {parameter('timeout_s')} s for a whole call"),
    ("client.md", f"kept open to each node, {parameter('connections')} |"),
    ("client.md", f"remembers for at least {expiry.LIFETIME_S:g} s"),
    ("client.md", f"more than {attempts.RESEND_WINDOW_S:g} s after its first attempt"),
    (
        "client.md",
        f"from {1000 * attempts.BACKOFF_FIRST_S:g} ms to {attempts.BACKOFF_MAX_S:g} s with jitter",
    ),
    ("architecture.md", f"{size(replication.WINDOW_BYTES)} a group; "),
    ("architecture.md", f"a group; {size(windows.PEER_WINDOW_BYTES)} all groups together"),
    ("architecture.md", f"and {size(windows.SHARE_BYTES)} for each group"),
    ("architecture.md", f"chunks of snapshots to a peer | {size(LINK.bulk_queue_bytes_max)}; "),
    ("architecture.md", f"{CHUNK.WINDOW_CHUNKS} of {size(CHUNK.CHUNK_BYTES)} of each snapshot"),
    ("architecture.md", f"between nodes | {size(LINK.small_waiting_bytes_max)} beside"),
    ("architecture.md", f"large calls to a peer | {size(LINK.calls_waiting_bytes_max)} |"),
    ("architecture.md", f"large answers to a peer | {size(LINK.answers_waiting_bytes_max)}, "),
    ("architecture.md", f"to an HTTP worker | {size(server.REPLIES_WAITING_BYTES_MAX)} |"),
    ("architecture.md", f"asks | {gather.PARTS_AT_ONCE} at a time"),
    ("architecture.md", f"more than {size(LINK.small_bytes)}) crosses a link"),
    ("architecture.md", f"in pieces of {size(lanes.PIECE_BYTES)}"),
    ("architecture.md", f"the receiver lets {size(LINK.bulk_window_bytes)} be under way"),
    ("guarantees.md", f"at least {expiry.LIFETIME_S:g} s"),
    ("hazards.md", f"of version {seams.PYSYNCOBJ_VERSION}."),
    ("design.md", f"PySyncObj {seams.PYSYNCOBJ_VERSION} is the Raft engine"),
    ("cli.md", f"| {EXIT_NO_SERVER} | | a command of the server"),
    ("cli.md", f"| {node.EXIT_FATAL} | | `serve` stopped"),
]


@pytest.mark.parametrize(("page", "claim"), CLAIMS)
def test_a_page_has_the_numbers_of_the_code(page: str, claim: str) -> None:
    """The sentence stands there, with the number that the code has now."""
    assert claim in " ".join((DOCS / page).read_text(encoding="utf-8").split())


def test_transactions_read_as_much_as_is_said() -> None:
    """Where the two documents that name the bound do so."""
    assert size(transactions.TXN_READ_BYTES_MAX) in (DOCS / "http-api.md").read_text()


# --- names ----------------------------------------------------------------------------------------


def code_in(text: str) -> set[str]:
    """Everything between code marks."""
    return set(re.findall(r"`([^`\n]+)`", text))


def test_the_data_directory_has_what_storage_lists() -> None:
    """Files by the names that the code gives them."""
    listed = code_in((DOCS / "storage.md").read_text().split("## Write-ahead log")[0])
    assert {
        map_file.NAME,
        agreement.NAME,
        node.ENGINE_SOCKET,
        "identity",
        "peers",
        "lock",
    } <= listed


def test_every_command_is_on_the_page_of_the_command_line() -> None:
    """And no command that does not exist; those of ``bench`` have a table of their own."""
    text = (DOCS / "cli.md").read_text()
    table, bench_table = text.split("## Exit codes")[0], text.split("## raftkv bench")[1]
    named = {
        word
        for cell in re.findall(r"(?m)^\| (`.*?`) \|", table)
        for code in code_in(cell)
        if (word := code.removeprefix("raftkv ").split()[0])
    }
    assert named == set(COMMANDS)
    bench = cli.get_command(click.Context(cli), "bench")
    assert isinstance(bench, click.Group)
    rows = re.findall(r"(?m)^\| (`.*?`) \|", bench_table.split("## In tests")[0])
    assert {code for cell in rows for code in code_in(cell)} == set(bench.commands)


def test_the_commands_of_the_server_are_named_where_their_exit_code_is() -> None:
    """Whoever meets the code finds which commands end with it."""
    (row,) = re.findall(rf"(?m)^\| {EXIT_NO_SERVER} \|.*$", (DOCS / "cli.md").read_text())
    assert SERVER_COMMANDS - {"dev", "init", "serve"} <= code_in(row)


def test_options_that_pages_name_exist() -> None:
    """``table.option`` of node.toml, wherever a page speaks of one."""
    tables = msgspec.structs.fields(config.NodeConfig)
    known = {f"{table.name}.{field.name}" for table in tables for field in fields_of(table.type)}
    named = {
        (page.name, code)
        for page in (*DOCS.glob("*.md"), TOP / "README.md", TOP / "CHANGELOG.md")
        for code in code_in(page.read_text())
        if re.fullmatch(rf"({'|'.join(table.name for table in tables)})\.[a-z][a-z_]*", code)
        and not code.endswith((".py", ".toml", ".md"))
    }
    assert len(named) > 10
    assert {(page, code) for page, code in named if code not in known} == set()


def fields_of(kind: Any) -> tuple[msgspec.structs.FieldInfo, ...]:
    """The options of one table."""
    return msgspec.structs.fields(kind)


def test_what_a_worker_is_told_has_the_defaults_of_its_own_settings() -> None:
    """Defaults that engine and front end both have are the same ones."""
    shipped = config.NodeConfig(
        cluster=config.ClusterOptions(id="c", nodes={"n1": "127.0.0.1:7001"}, replicas=1),
        node=config.NodeOptions(name="n1", data_dir="data"),
    )
    told = msgspec.convert(
        web_config(shipped, worker=0, listen_fd=3, engine_socket="s", engine_token="t"),
        web.WebConfig,
    )
    alone = web.WebConfig(node_name="n1")
    for name in ("log_format", "log_level", "slow_request_ms", "host", "port"):
        assert getattr(told, name) == getattr(alone, name), name
    assert told.limits.value_bytes_max == alone.limits.value_bytes_max


def test_pages_agree_on_what_a_key_costs() -> None:
    """One figure for the bytes of a key beyond key and value, in all that say one."""
    said = {
        figure
        for page in (TOP / "README.md", DOCS / "operations.md")
        for figure in re.findall(r"(\d{3}) bytes a key", page.read_text())
    }
    assert said == {"370"}


NUMBERS = {21: "twenty-one", 35: "thirty-five", 36: "thirty-six", 37: "thirty-seven"}


def test_pages_count_hazards_and_seeded_bugs_rightly() -> None:
    """README's and CHANGELOG's words for how many there are."""
    bugs = importlib.import_module("seeded_bugs").BUGS
    changes = (TOP / "CHANGELOG.md").read_text()
    assert f"{NUMBERS.get(len(bugs), len(bugs))} seeded bugs" in changes
    rows = re.findall(
        r"(?m)^\| `(\w+)` \|", (DOCS / "testing.md").read_text().split("## Seeded")[1]
    )
    assert set(rows) == set(bugs)


def test_the_site_and_the_package_name_one_repository() -> None:
    """One address, in setup.cfg, zensical.toml and links."""
    site = tomllib.loads((TOP / "zensical.toml").read_text())["project"]
    settings = (TOP / "setup.cfg").read_text()
    assert f"\nurl = {site['repo_url']}\n" in settings
    others = set(re.findall(r"https://github\.com/[\w-]+/raftkv", settings)) - {site["repo_url"]}
    assert others == set()
