"""When a leader forgets idempotency memory: never early, in the end always, idle when idle."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.core.operations import (
    BATCH_FORMAT,
    Batch,
    Command,
    Forget,
    FreeKey,
    Idempotency,
    LoggedOperation,
    Put,
    Refused,
    SessionKey,
    WriteResult,
)
from raftkv.core.shard.expiry import NAMES_PER_FORGET, ExpiryClock
from raftkv.core.shard.machine import StateMachine
from raftkv.core.shard.outcomes import FORGET_CHARACTERS_MAX

LIFETIME_S = 120.0


class Leader:
    """A shard and its leader's clock, with a time that the test moves."""

    def __init__(self) -> None:
        self.state = StateMachine(1, lambda _key: True)
        self.now_s = 1_000.0
        self.proposals = 0
        self.lead()

    def lead(self) -> None:
        """Begin to lead: a new clock that knows nothing."""
        self.clock = ExpiryClock(self.state.memory, lifetime_s=LIFETIME_S)

    def write(self, name: Idempotency) -> None:
        """Apply a write under a name."""
        self._apply(Put(b"k", b""), name)

    def run(self, seconds: float, step_s: float = 1.0) -> None:
        """Poll for some time and apply at once what is proposed."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += step_s
            forget = self.clock.poll(self.now_s)
            if forget is not None:
                self.proposals += 1
                self._apply(forget, None)

    def forget(self, forget: LoggedOperation) -> None:
        """Apply what was proposed."""
        self._apply(forget, None)

    @property
    def names(self) -> set[str]:
        """All names remembered."""
        return {*self.state.memory._free, *self.state.memory._sessions}

    def _apply(self, operation: LoggedOperation, name: Idempotency | None) -> None:
        self.state.apply(Batch(BATCH_FORMAT, 1, 0, (Command(operation, name),)))


def test_a_name_lives_its_time_and_not_much_longer() -> None:
    """Still there after 120 s, gone by 150 s."""
    leader = Leader()
    leader.write(FreeKey("f"))
    leader.write(SessionKey("s", 0, 0, 1))
    leader.run(LIFETIME_S)
    assert leader.names == {"f", "s"}
    leader.run(30)
    assert leader.names == set()


def test_a_session_in_use_lives_on() -> None:
    """Every use counts anew; a free-form key's time began when it was applied."""
    leader = Leader()
    leader.write(FreeKey("f"))
    for sequence in range(10):
        leader.write(SessionKey("s", sequence, sequence, 1))
        leader.run(60)
    assert leader.names == {"s"}


def test_an_idle_shard_proposes_nothing() -> None:
    """After the last name is forgotten the log stays still."""
    leader = Leader()
    leader.run(500)
    assert leader.proposals == 0
    leader.write(FreeKey("f"))
    leader.run(500)
    assert (leader.proposals, leader.names) == (2, set())


def test_a_new_leader_gives_every_name_its_whole_time() -> None:
    """It cannot know how long they have lived."""
    leader = Leader()
    leader.write(FreeKey("f"))
    leader.run(LIFETIME_S - 1)
    leader.lead()
    leader.run(LIFETIME_S)
    assert leader.names == {"f"}
    leader.run(30)
    assert leader.names == set()


def test_one_proposal_at_a_time_and_a_lost_one_is_made_again() -> None:
    """Nothing piles up in the log while a proposal is on its way."""
    leader = Leader()
    leader.write(FreeKey("f"))
    leader.run(LIFETIME_S + 9)
    proposed = [leader.clock.poll(leader.now_s + second) for second in range(20)]
    assert 2 <= sum(forget is not None for forget in proposed) <= 4
    assert leader.names == {"f"}


def test_many_names_are_forgotten_in_bounded_portions() -> None:
    """A Forget is bounded, and the next poll goes on."""
    leader = Leader()
    for number in range(2 * NAMES_PER_FORGET + 1):
        leader.write(FreeKey(f"f{number}"))
    leader.run(LIFETIME_S + 15)
    assert leader.names == set()
    assert leader.proposals == 4  # one that ends the epoch, and three portions


def test_long_names_are_forgotten_in_portions_of_bounded_size() -> None:
    """An entry of the log must not grow with the length of names."""
    leader = Leader()
    for number in range(NAMES_PER_FORGET):
        leader.write(FreeKey(f"{number:0255}"))
    leader.run(LIFETIME_S + 9)
    forget = None
    while not isinstance(forget, Forget) or not forget.keys:
        leader.now_s += 1.0
        forget = leader.clock.poll(leader.now_s)
        if forget is not None:
            leader.forget(forget)
    assert 2_000 < len(forget.keys) < NAMES_PER_FORGET
    assert sum(map(len, forget.keys)) <= FORGET_CHARACTERS_MAX


def under_load(leader: Leader, keys_per_s: int, seconds: int) -> list[int]:
    """Write under new keys with a Forget in between; return how many were refused, by second."""
    refused = []
    memory = leader.state.memory
    for _ in range(seconds):
        count = 0
        for number in range(keys_per_s):
            name = FreeKey(f"{leader.now_s} {number}")
            if memory.recall(name, b"f") is None:
                memory.remember(name, b"f", Refused("precondition"))
            else:
                count += 1
        refused.append(count)
        leader.run(1.0)
    return refused


@pytest.mark.parametrize("keys_per_s", [1_500, 2_000])
def test_new_keys_up_to_the_rate_that_is_promised(keys_per_s: int) -> None:
    """None is refused, however long it goes on."""
    assert sum(under_load(Leader(), keys_per_s, 300)) == 0


def test_more_new_keys_than_are_promised() -> None:
    """What is beyond the rate is refused, and nothing any more once it is over."""
    leader = Leader()
    refused = under_load(leader, 2_500, 180)
    taken_per_s = 2_500 - sum(refused[140:]) / 40
    assert taken_per_s > 1_900
    assert sum(under_load(leader, 1_500, 60)[3:]) == 0


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c"]), st.floats(0, 200), st.booleans()), max_size=12
    )
)
def test_no_name_is_ever_forgotten_early(steps: list[tuple[str, float, bool]]) -> None:
    """Whatever is used when, and however often leaders change."""
    leader = Leader()
    used_at: dict[str, float] = {}
    born: dict[str, int] = {}
    for sequence, (name, pause_s, is_new_leader) in enumerate(steps):
        if name not in leader.names:
            born[name] = sequence + 1
        leader.write(SessionKey(name, sequence, 0, born[name]))
        used_at[name] = leader.now_s
        if is_new_leader:
            leader.lead()
        leader.run(pause_s, step_s=3.0)
        alive = {n for n, at in used_at.items() if leader.now_s - at < LIFETIME_S}
        assert alive <= leader.names
    leader.run(2 * LIFETIME_S)
    assert leader.names == set()


def test_a_forget_that_is_overtaken_by_another_forgets_nothing() -> None:
    """While commits lag, a name may be used and two Forgets be under way: it lives on."""

    def write(sequence: int) -> Command:
        return Command(Put(b"key%d" % sequence, b"v"), SessionKey("s", sequence, sequence, 1))

    def apply(*commands: Command) -> list[WriteResult]:
        return state.apply(Batch(BATCH_FORMAT, 1, 0, commands))

    state = StateMachine(1, lambda _: True)
    clock = ExpiryClock(state.memory)
    apply(write(1))
    now, due = 0.0, None
    while not isinstance(due, Forget) or not due.sessions:
        if due is not None:
            apply(Command(due))
        now += 1.0
        due = clock.poll(now)
    # The session is due; its client writes again just before that is in the log.
    log = [write(2), Command(due)]
    for _ in range(6):
        now += 1.0
        if (again := clock.poll(now)) is not None:
            log.append(Command(again))
    assert len(log) == 3, "the leader asks a second time"
    [first, *_] = apply(*log)
    assert apply(write(2)) == [first]
