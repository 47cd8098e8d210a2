"""Numbers of writes: never twice, and the watermark never passes an open one."""

import os
import threading

import pytest

from raftkv.client import session as module
from raftkv.client.session import BIRTH_MAX, IDLE_S, WINDOW_MAX, Session, SessionPool


class Clocks:
    """What the session takes for the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boot_s = 5000.0
        self.wall_us = 1_700_000_000_000_000
        monkeypatch.setattr(module, "boot_s", lambda: self.boot_s)
        monkeypatch.setattr(module, "wall_us", lambda: self.wall_us)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    """Clocks that a test sets."""
    return Clocks(monkeypatch)


def test_numbers_rise_and_the_watermark_is_the_lowest_open_one() -> None:
    """Answered numbers below every open one may be forgotten, none above it."""
    session = Session()
    with session.writes() as first:
        with session.writes(3) as batch:
            assert (first.first, batch.first) == (1, 2)
            assert batch.low == 1
        with session.writes() as third:
            assert third.header == f"{first.session};5;1;{first.born}"
    with session.writes() as fourth:
        assert fourth.header.endswith(f";6;6;{fourth.born}")


def test_an_earlier_write_that_ends_later_holds_the_watermark() -> None:
    """Order of answers does not matter, only what is open."""
    session = Session()
    early, late = session.writes(), session.writes()
    early.__enter__()
    ticket = late.__enter__()
    late.__exit__(None, None, None)
    with session.writes() as third:
        assert third.low == 1
        early.__exit__(None, None, None)
        assert third.low == 3
    assert ticket.first == 2


def test_a_write_that_raises_is_not_open_any_more() -> None:
    """An error ends the call: nobody will ask for this number again."""
    session = Session()
    try:
        with session.writes():
            raise KeyError  # noqa: TRY301 -- the point of the test
    except KeyError:
        pass
    with session.writes() as ticket:
        assert ticket.low == 2


def test_threads_never_share_a_number() -> None:
    """Two writes under one number would be taken for one."""
    session = Session()
    taken: list[tuple[str, int]] = []

    def write_many() -> None:
        for _ in range(500):
            with session.writes() as ticket:
                taken.append((ticket.session, ticket.first))

    threads = [threading.Thread(target=write_many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 4000


def test_a_forked_child_begins_a_session_of_its_own() -> None:
    """Parent and child must not number their writes alike."""
    session = Session()
    with session.writes() as before:
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            with session.writes() as ticket:
                os.write(write_end, ticket.header.encode())
            os._exit(0)
        os.waitpid(child, 0)
        header = os.read(read_end, 200).decode()
        os.close(read_end)
        os.close(write_end)
    assert not header.startswith(before.session)
    assert header.split(";")[1:3] == ["1", "1"]


def test_sessions_of_a_pool_are_lent_to_one_at_a_time_and_reused() -> None:
    """Two requests at once have two sessions; one after the other have one."""
    pool = SessionPool()
    with pool.borrow() as first, pool.borrow() as second:
        assert first is not second
    with pool.borrow() as again:
        assert again in {first, second}


def test_one_open_write_does_not_hold_up_all_others() -> None:
    """Far beyond an open number a new session begins, whose watermark goes on."""
    session = Session()
    with session.writes() as stuck:
        for _ in range(WINDOW_MAX - 1):
            with session.writes() as ticket:
                assert (ticket.session, ticket.low) == (stuck.session, 1)
        with session.writes() as ticket:
            assert (ticket.session != stuck.session, ticket.first, ticket.low) == (True, 1, 1)
        assert stuck.low == 1
        with session.writes() as again:
            assert (again.session, again.low) == (ticket.session, 2)


def test_a_session_that_was_not_used_for_long_is_not_used_again(clocks: Clocks) -> None:
    """Servers may have forgotten it, be it that the machine slept; in use it lives on."""
    session = Session()
    with session.writes() as ticket:
        name = ticket.session
    for _ in range(3):
        clocks.boot_s += IDLE_S
        with session.writes() as ticket:
            assert ticket.session == name
    clocks.boot_s += IDLE_S + 1
    with session.writes() as ticket:
        assert (ticket.session != name, ticket.first, ticket.low) == (True, 1, 1)


def test_a_session_is_born_by_the_clock_and_after_what_was_forgotten(clocks: Clocks) -> None:
    """A refusal is learned from: the sessions that follow are let in at once."""
    session = Session()
    with session.writes() as ticket:
        before = ticket.session
        assert ticket.born == clocks.wall_us
        forgotten = clocks.wall_us + 5_000_000
        assert ticket.renew(forgotten)
        assert (ticket.session != before, ticket.first, ticket.born) == (True, 1, forgotten + 1)
        with session.writes() as other:
            assert (other.session, other.first, other.low) == (ticket.session, 2, 1)
    clocks.boot_s += IDLE_S + 1
    clocks.wall_us += 1000
    with session.writes() as ticket:
        assert ticket.born == forgotten + 1001


def test_threads_that_are_refused_together_begin_one_session(clocks: Clocks) -> None:
    """The second finds that there is one born late enough; the old numbers are closed."""
    session = Session()
    with session.writes() as first, session.writes() as second:
        assert first.renew(clocks.wall_us)
        assert second.renew(clocks.wall_us)
        assert second.session == first.session
        assert (first.first, second.first, second.low) == (1, 2, 1)


def test_a_session_born_after_what_was_forgotten_cannot_be_renewed(clocks: Clocks) -> None:
    """It was refused for something else, and a write that it numbers may yet be applied."""
    with Session().writes() as ticket:
        assert not ticket.renew(clocks.wall_us - 1)
        assert ticket.first == 1


def test_a_wild_clock_leaves_room_for_births(clocks: Clocks) -> None:
    """No clock says more than servers take."""
    clocks.wall_us = 2**60
    with Session().writes() as ticket:
        assert ticket.born == BIRTH_MAX
