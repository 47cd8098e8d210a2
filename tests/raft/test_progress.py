"""What a leader knows of one follower."""

from hypothesis import given
from hypothesis import strategies as st

from raftkv.raft.progress import Progress

LATELY_S = 0.5


def of_a_leadership(next_index: int = 11, now: float = 100.0) -> Progress:
    """A follower as a leadership begins whose log ends before ``next_index``."""
    progress = Progress()
    progress.begin(next_index, now)
    return progress


def test_a_leadership_begins_with_nothing_known() -> None:
    """It is sent what comes next, and counts as holding nothing until it says so."""
    progress = of_a_leadership()
    progress.sent(12, 50)
    progress.acknowledged(12)
    progress.sent(13, 70)
    assert progress.lose_in_flight() == 70
    progress.begin(20, 101.0)
    assert (progress.match, progress.next, progress.heard_at) == (0, 20, 101.0)
    assert not progress.has_in_flight


def test_whether_a_follower_has_answered_is_of_one_leadership() -> None:
    """Who has led before knows no more of it than any other new leader."""
    progress = Progress()
    progress.begin(5, 1.0)
    assert not progress.has_answered
    progress.answered(2.0)
    assert (progress.has_answered, progress.heard_at) == (True, 2.0)
    progress.begin(9, 3.0)
    assert not progress.has_answered


def test_an_acknowledgement_frees_what_it_covers() -> None:
    """Messages are freed whole, in their order."""
    progress = of_a_leadership()
    for last_index, size_bytes in ((11, 10), (14, 40), (15, 5)):
        progress.sent(last_index, size_bytes)
    assert progress.acknowledged(13) == 10
    assert (progress.match, progress.next, progress.in_flight_bytes) == (13, 16, 45)
    assert progress.acknowledged(15) == 45
    assert not progress.has_in_flight


def test_an_older_acknowledgement_moves_nothing_back() -> None:
    """H2: success never takes back what was said before, nor sends it again."""
    progress = of_a_leadership()
    progress.sent(15, 50)
    progress.acknowledged(15)
    progress.acknowledged(12)
    assert (progress.match, progress.next) == (15, 16)


def test_a_follower_that_has_more_than_it_was_sent_is_sent_what_it_lacks() -> None:
    """It may hold entries from an earlier term of this leader."""
    progress = of_a_leadership()
    progress.next = 5
    progress.acknowledged(9)
    assert (progress.match, progress.next) == (9, 10)


def test_a_refusal_goes_back_to_where_the_follower_says() -> None:
    """Not behind what it had acknowledged, nor beyond the end of the log."""
    progress = of_a_leadership()
    assert progress.refused(next_index=4, refused_index=10, last_index=10) == 0
    assert progress.next == 4
    progress.acknowledged(6)
    assert progress.refused(next_index=3, refused_index=10, last_index=10) == 0
    assert (progress.match, progress.next) == (6, 7)
    assert progress.refused(next_index=40, refused_index=39, last_index=10) == 0
    assert progress.next == 11


def test_a_follower_that_refuses_what_it_had_acknowledged_has_lost_it() -> None:
    """It is asked from there again, and counts as holding nothing."""
    progress = of_a_leadership()
    progress.acknowledged(8)
    assert progress.refused(next_index=5, refused_index=7, last_index=10) == 8
    assert (progress.match, progress.next) == (0, 5)


def test_the_first_entry_is_never_sent_again() -> None:
    """Every log begins with it."""
    progress = of_a_leadership()
    progress.refused(next_index=0, refused_index=9, last_index=10)
    assert progress.next == 2


def test_of_equal_refusals_in_a_row_the_first_counts() -> None:
    """The others were said before what was sent again could be seen."""
    progress = of_a_leadership()
    assert not progress.is_old_refusal(4, 100.0, LATELY_S)
    progress.sent(10, 60)
    assert progress.is_old_refusal(4, 100.1, LATELY_S)
    assert not progress.is_old_refusal(3, 100.2, LATELY_S)
    assert not progress.is_old_refusal(3, 100.2 + LATELY_S, LATELY_S)
    progress.lose_in_flight()
    assert not progress.is_old_refusal(3, 100.2 + LATELY_S, LATELY_S)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("sent"), st.integers(1, 5), st.integers(1, 100)),
        st.tuples(st.just("acknowledged"), st.integers(0, 40), st.just(0)),
        st.tuples(st.just("refused"), st.integers(0, 40), st.integers(0, 40)),
        st.tuples(st.just("lost"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@given(STEPS)
def test_whatever_comes_bytes_are_counted_once_and_what_is_next_is_not_held(
    steps: list[tuple[str, int, int]],
) -> None:
    """What was sent is in flight until it is answered or lost; ``next`` stays after ``match``."""
    progress = of_a_leadership()
    last_index, sent, freed = 10, 0, 0
    for kind, first, second in steps:
        if kind == "sent":
            last_index = max(last_index, progress.next + first - 1)
            progress.sent(progress.next + first - 1, second)
            sent += second
        elif kind == "acknowledged":
            freed += progress.acknowledged(min(first, last_index))
        else:
            freed += progress.lose_in_flight()
            if kind == "refused":
                progress.refused(first, second, last_index)
        assert progress.in_flight_bytes == sent - freed >= 0
        assert progress.has_in_flight == (progress.in_flight_bytes > 0)
        assert progress.match < progress.next <= last_index + 1
