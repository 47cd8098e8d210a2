"""Numbers of writes: never twice, and the watermark never passes an open one."""

import os
import threading

from raftkv.client.session import WINDOW_MAX, Session, SessionPool


def test_numbers_rise_and_the_watermark_is_the_lowest_open_one() -> None:
    """Answered numbers below every open one may be forgotten, none above it."""
    session = Session()
    with session.writes() as first:
        with session.writes(3) as batch:
            assert (first.first, batch.first) == (1, 2)
            assert batch.low == 1
        with session.writes() as third:
            assert third.header == f"{first.session};5;1"
    with session.writes() as fourth:
        assert fourth.header.endswith(";6;6")


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
    assert header.endswith(";1;1")


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
