"""What stock PySyncObj 0.3.17 does wrong, shown: each test asserts the harm itself.

These are the first halves; the second, ``test_hazards_mended.py``, tells raftkv the same stories
and asserts that no harm was done. If a test here fails, stock behaves better than believed: the
mend may have become needless, or the scenario no longer shows what it is about.
"""

import pickle
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from pysyncobj import SyncObjConf
from pysyncobj.journal import FileJournal, ResizableFile
from pysyncobj.syncobj import _COMMAND_TYPE, _bchr

from tests.raft import scenarios
from tests.raft.stock_world import StockWorld, stock_worlds
from tests.raft.worlds import MakeWorld, applied_twice, unanswered

# Stock opens its meta and dump files and lets the garbage collector close them.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*(meta|dump):ResourceWarning")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeWorld]:
    """A maker of stock worlds."""
    with stock_worlds(tmp_path / "worlds") as maker:
        yield maker


def test_h1_deposed_leader_reports_success_for_lost_writes(make: MakeWorld) -> None:
    """H1: a snapshot chunk commits the receiver's own divergent entries."""
    assert "divergent1" in scenarios.h1_snapshot_chunk_commits_divergent_entries(make)


def test_h2_resends_truncate_acknowledged_entries(make: MakeWorld) -> None:
    """H2: an overlapping resend cuts entries that the leader has counted as replicated."""
    assert "late10" in scenarios.h2_resends_truncate_acknowledged_entries(make)


def test_h3_restart_wipes_the_journal_after_a_dump(make: MakeWorld) -> None:
    """H3: a dump that is newer than the journal's head makes the restart drop all entries."""
    assert "late10" in scenarios.h3_crash_between_dump_and_truncation(make)


def test_h4_journal_killed_while_trimming_loses_the_rest(tmp_path: Path) -> None:
    """H4: trimming clears the file and adds the rest again; a kill in between loses entries."""
    journal = FileJournal(str(tmp_path / "journal"))
    for index in range(1, 101):
        journal.add(b"command", index, 1)

    class Killed(BaseException):
        """Nothing catches this, as nothing catches kill -9."""

    writes = 0
    write = ResizableFile.write

    def killed_in_the_middle(file: ResizableFile, offset: int, values: bytes) -> None:
        nonlocal writes
        writes += 1
        if writes > 1 + 2 * 5:  # the header once, then two writes for each of five entries
            raise Killed
        write(file, offset, values)

    with (
        mock.patch.object(ResizableFile, "write", killed_in_the_middle),
        pytest.raises(Killed),
    ):
        journal.deleteEntriesTo(50)
    journal._destroy()
    survivor = FileJournal(str(tmp_path / "journal"))
    assert [index for _, index, _ in survivor[:]] == [51, 52, 53, 54, 55]
    survivor._destroy()


def test_h5_damaged_dump_is_ignored_and_the_node_leads_empty(make: MakeWorld) -> None:
    """H5: a dump that cannot be read is swallowed; the node leads without its data."""
    assert "early1" in scenarios.h5_damaged_snapshot_is_ignored(make)


def test_h5_flipped_bits_in_a_dump_go_unnoticed(make: MakeWorld) -> None:
    """H5: some damage is not even noticed, since nothing reads the dump's checksum."""
    world = scenarios.led_by_a(make, "a", on_disk=True)
    assert isinstance(world, StockWorld)
    assert world.directory is not None
    dump = world.directory / "a.dump"
    unnoticed = 0
    for write in scenarios.names("early", 10):
        world.write("a", write)
    world.compact("a")
    before = world.values("a")
    content = dump.read_bytes()
    for position in range(0, len(content), 4):
        flipped = bytearray(content)
        flipped[position] ^= 1
        dump.write_bytes(flipped)
        world.crash("a")
        world.start("a")
        unnoticed += len(world.values("a")) == len(before) and world.values("a") != before
    assert unnoticed > 0


def test_h6_failed_install_is_acknowledged(make: MakeWorld) -> None:
    """H6: a follower that could not read a snapshot acknowledges its own divergent log."""
    assert "late5" in scenarios.h6_failed_snapshot_install_is_acknowledged(make)


def test_h7_old_snapshot_wipes_acknowledged_entries(make: MakeWorld) -> None:
    """H7: a snapshot that was installed already is installed again over newer entries."""
    assert "late5" in scenarios.h7_old_snapshot_wipes_newer_entries(make)


def test_h8_power_loss_forgets_acknowledged_entries(make: MakeWorld) -> None:
    """H8: what stock acknowledges need not be on any disk."""
    assert "late10" in scenarios.h8_power_loss_forgets_acknowledged_entries(make)


def test_h8_power_loss_forgets_a_vote(make: MakeWorld) -> None:
    """H8: a forgotten vote is given again, and one term has two leaders."""
    assert scenarios.h8_power_loss_forgets_a_vote(make) == {1: {"a", "c"}}


def test_h8_nothing_is_synced(make: MakeWorld) -> None:
    """H8: no sync of any kind happens between a write and its acknowledgement."""
    with (
        mock.patch("os.fsync", autospec=True) as fsync,
        mock.patch("os.fdatasync", autospec=True) as fdatasync,
        mock.patch.object(ResizableFile, "flush", autospec=True) as flush,
    ):
        world = scenarios.led_by_a(make, on_disk=True)
        world.write("a", "acknowledged")
    assert world.is_acknowledged("acknowledged")
    assert not any(sync.called for sync in (fsync, fdatasync, flush))


def test_h9_commit_index_beyond_the_log_commits_alone(make: MakeWorld) -> None:
    """H9: a leader whose log lost its tail acknowledges a write with every peer cut off."""
    assert scenarios.h9_commit_index_beyond_the_log(make) == {"alone"}


def test_h10_acknowledgement_of_an_older_term_counts(make: MakeWorld) -> None:
    """H10: an acknowledgement of term 1 commits entries of term 3."""
    assert "late3" in scenarios.h10_acknowledgement_of_an_older_term_counts(make)


def test_h11_one_voter_counts_twice(make: MakeWorld) -> None:
    """H11: one voter's answer, twice delivered, elects a second leader of the same term."""
    assert scenarios.h11_one_voter_counts_twice(make) == {1: {"a", "c"}}


def test_h12_callback_that_raises_applies_twice(make: MakeWorld) -> None:
    """H12: the entry whose callback raised is applied again at the next tick."""
    assert scenarios.h12_callback_that_raises(make) == {"once"}


def test_h12_command_that_raises_blocks_for_ever(make: MakeWorld) -> None:
    """H12: a command that raises is retried for ever, and nothing after it is applied."""
    world = scenarios.led_by_a(make)
    assert isinstance(world, StockWorld)
    world.nodes["a"].explode(callback=lambda *_: None)
    world.propose("a", "after")
    world.run(5.0)
    assert unanswered(world) == {"after"}
    assert len([error for error in world.errors if type(error) is ZeroDivisionError]) > 100


def test_h12_unsupported_version_applies_twice(make: MakeWorld) -> None:
    """H12: entries after a version command that is not understood are applied twice."""
    world = scenarios.led_by_a(make, "a")
    assert isinstance(world, StockWorld)
    world.nodes["a"]._applyCommand(pickle.dumps(99), None, _COMMAND_TYPE.VERSION)
    world.propose("a", "after")
    world.run(0.5)
    assert applied_twice(world) == {"after"}


def test_h13_large_entries_raise_in_the_follower(make: MakeWorld) -> None:
    """H13: pieces of some large entries are announced as the last one too early."""
    assert "EOFError" in str(scenarios.h13_large_entries(make))


def test_h14_writers_are_never_answered(make: MakeWorld) -> None:
    """H14: writes that waited when leadership was lost are never answered."""
    assert "waiting10" in scenarios.h14_writers_never_answered(make)


def test_h15_deposed_leader_serves_stale_reads(make: MakeWorld) -> None:
    """H15: a cut-off leader goes on answering reads after another leader's writes."""
    assert scenarios.h15_deposed_leader_serves_stale_reads(make) == {"news"}


def test_h16_log_is_trimmed_without_a_dump(make: MakeWorld) -> None:
    """H16: with a background serializer the log is trimmed, and no dump is on disk."""
    assert "early10" in scenarios.h16_log_is_trimmed_without_a_snapshot(make)


def test_h17_full_pipe_raises_for_a_write_that_is_applied(make: MakeWorld) -> None:
    """H17: in no-batch mode a proposer gets an exception and its write is applied all the same."""
    world = make("a", no_batch=True)
    assert isinstance(world, StockWorld)
    raised = ""
    for number in range(100_000):  # more than a pipe holds
        try:
            world.nodes["a"].append(f"write{number}", callback=lambda *_: None)
        except BlockingIOError:
            raised = f"write{number}"
            break
    world.elect("a")
    world.run(1.0, until=lambda: raised in world.values("a")[-1:])
    assert raised
    assert raised in world.values("a")


def test_h18_full_disk_parts_memory_and_log(make: MakeWorld) -> None:
    """H18: an entry that the disk refused is in memory, is acknowledged, and lost at restart."""
    assert "unlucky" in scenarios.h18_full_disk_parts_memory_and_log(make)


def test_h19_emptied_disk_votes_again(make: MakeWorld) -> None:
    """H19: a replica whose disk was emptied helps to elect a leader without its data."""
    assert scenarios.h19_emptied_disk_votes_again(make) == {"precious"}


def test_h20_leader_with_a_dead_disk_goes_on_leading(make: MakeWorld) -> None:
    """H20: a leader whose disk takes nothing more keeps two healthy replicas from electing."""
    assert scenarios.h20_leader_with_a_dead_disk(make) == {"stuck"}


def test_h21_queued_write_is_sent_to_the_new_leader(make: MakeWorld) -> None:
    """H21: a write queued under an old leadership is executed under the new one."""
    assert scenarios.h21_queued_write_survives_its_leadership(make) == {"late"}


def test_stock_conf_has_the_defaults_that_the_scenarios_rely_on() -> None:
    """Where a scenario keeps a stock default, that default is what makes the harm reachable."""
    conf = SyncObjConf()
    assert conf.appendEntriesUseBatch
    assert conf.commandsWaitLeader
    assert conf.appendEntriesBatchSizeBytes == 2**16
    assert conf.leaderFallbackTimeout == 30.0
    assert _bchr(_COMMAND_TYPE.NO_OP) == b"\x01"
