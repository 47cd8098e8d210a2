"""A write of a session is applied at most once, however late a copy of it arrives."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.core.batches import decode_batch, encode_batch
from raftkv.core.operations import (
    BATCH_FORMAT,
    Batch,
    Command,
    Forget,
    Put,
    PutResult,
    Refused,
    Seal,
    SessionKey,
    WriteResult,
)
from raftkv.core.shard.machine import StateMachine
from raftkv.core.shard.outcomes import BIRTH_MAX, MemoryLimits

LIMITS = MemoryLimits(sessions_max=3, session_outcomes_max=4)
FORGET_ALL = Forget((), tuple("abcd"))


@dataclass
class Shard:
    """A state machine whose every entry goes through the log's encoding."""

    state: StateMachine = field(default_factory=lambda: StateMachine(1, lambda _: True, LIMITS))
    format: int = BATCH_FORMAT

    def apply(self, operation: Put | Forget | Seal, name: SessionKey | None = None) -> WriteResult:
        """Apply one command."""
        command = Command(operation, name)
        batch = Batch(self.format, self.state.generation, 0, (command,))
        (result,) = self.state.apply(decode_batch(encode_batch(batch)))
        return result

    def put(self, name: SessionKey) -> WriteResult:
        """Apply a put whose value tells which write it is."""
        return self.apply(Put(b"k", f"{name.session} {name.sequence}".encode()), name)

    def forget_all(self) -> None:
        """Forget every session: none is used in the epoch between."""
        self.apply(Forget((), ()))
        self.apply(FORGET_ALL)

    def restore(self, generation: int | None = None) -> None:
        """Go on from a snapshot, perhaps as a sealed group's successor."""
        generation = self.state.generation if generation is None else generation
        restorer = StateMachine.restore(generation, lambda _: True, LIMITS)
        for record in self.state.snapshot_records():
            restorer.feed(record)
        self.state = restorer.finish()


def test_a_copy_that_comes_after_its_session_was_forgotten_is_refused() -> None:
    """The shard says up to which birth it knows no sessions any more."""
    shard = Shard()
    key = SessionKey("a", 1, 1, born=70)
    assert shard.put(key) == PutResult(1, 1)
    shard.forget_all()
    assert shard.put(key) == Refused("forgotten", 70)
    assert shard.state.last_revision == 1


def test_a_session_that_was_never_known_but_born_before_a_forgotten_one_is_refused() -> None:
    """Nobody can tell it from a forgotten one; one born later is let in."""
    shard = Shard()
    shard.put(SessionKey("a", 1, 1, born=70))
    shard.forget_all()
    assert shard.put(SessionKey("b", 1, 1, born=70)) == Refused("forgotten", 70)
    assert shard.put(SessionKey("b", 1, 1, born=71)) == PutResult(2, 2)


def test_a_session_that_is_known_is_never_refused_for_its_age() -> None:
    """However many younger ones have been forgotten since."""
    shard = Shard()
    shard.put(SessionKey("a", 1, 1, born=10))
    shard.put(SessionKey("b", 1, 1, born=99))
    shard.apply(Forget((), ()))
    shard.put(SessionKey("a", 2, 2, born=10))
    shard.apply(FORGET_ALL)
    assert shard.put(SessionKey("a", 3, 3, born=10)) == PutResult(4, 4)


def test_a_session_without_a_birth_is_let_in_nowhere() -> None:
    """A copy of such a write could come at any time."""
    assert Shard().put(SessionKey("a", 1, 1)) == Refused("forgotten", 0)


def test_one_name_with_another_birth_is_another_session() -> None:
    """While the first is known the second is refused; or a late copy might pass for the other."""
    shard = Shard()
    first = shard.put(SessionKey("a", 1, 1, born=5))
    assert shard.put(SessionKey("a", 2, 1, born=9)) == Refused("key_reused")
    assert shard.put(SessionKey("a", 1, 1, born=5)) == first
    shard.forget_all()
    assert shard.put(SessionKey("a", 2, 1, born=5)) == Refused("forgotten", 5)


def test_no_birth_shuts_out_those_to_come() -> None:
    """Above the greatest birth of an honest clock there is room to count on, for each shard."""
    shard = Shard()
    wild = BIRTH_MAX + 2**40
    assert shard.put(SessionKey("a", 1, 1, born=wild)) == Refused("forgotten", 0)
    for born in (BIRTH_MAX + 1, BIRTH_MAX + 2):
        assert isinstance(shard.put(SessionKey("b", 1, 1, born=born)), PutResult)
        shard.forget_all()
        assert shard.state.memory.forgotten_birth == born
    assert isinstance(shard.put(SessionKey("c", 1, 1, born=BIRTH_MAX + 3)), PutResult)


def test_what_a_log_of_before_says_is_applied_as_it_was_then() -> None:
    """Sessions of format 1 have no birth; recovery must give the answers that were given."""
    shard = Shard(format=1)
    assert shard.put(SessionKey("a", 1, 1)) == PutResult(1, 1)
    shard.restore()
    assert shard.put(SessionKey("a", 1, 1)) == PutResult(1, 1)
    shard.forget_all()
    assert shard.put(SessionKey("a", 1, 1)) == PutResult(2, 2)
    shard.format = BATCH_FORMAT
    assert shard.put(SessionKey("a", 1, 1)) == PutResult(2, 2)
    shard.forget_all()
    assert shard.put(SessionKey("a", 1, 1)) == Refused("forgotten", 0)


FORMAT_1_BATCH = bytes.fromhex("9401010091931e9501c4016bc40176c0c29402a1610201")
FORMAT_1_SNAPSHOT = [
    bytes.fromhex("99010101c000c4106b5807e4239388c3e445a35f79362405010101"),
    bytes.fromhex("9201919601c4016bc40176010101"),
    bytes.fromhex(
        "920292c4069403a1610100c41b9502a16102c410b315abf56dfcb431bdcfab4a25e4358493010101"
    ),
]
"""A put of ``k`` as number 2 of session ``a``, and the state after it, as format 1 wrote them."""


def test_records_of_before_are_read() -> None:
    """Log and snapshot give one state; a state without births is written to the same digest."""
    shard = Shard()
    assert shard.state.apply(decode_batch(FORMAT_1_BATCH)) == [PutResult(1, 1)]
    restorer = StateMachine.restore(1, lambda _: True, LIMITS)
    for record in FORMAT_1_SNAPSHOT:
        restorer.feed(record)
    assert restorer.finish().digest == shard.state.digest
    shard.restore()
    assert shard.state.apply(decode_batch(FORMAT_1_BATCH)) == [PutResult(1, 1)]


def test_the_digest_tells_what_was_forgotten() -> None:
    """Two replicas that would refuse differently must not look alike."""
    digests = set()
    for born in (5, 6):
        shard = Shard()
        shard.put(SessionKey("a", 1, 1, born=born))
        shard.forget_all()
        digests.add(shard.state.digest)
        assert shard.state.digest == shard.state.recomputed_digest()
    assert len(digests) == 2


NAMES = st.builds(
    SessionKey, st.sampled_from("abcd"), st.integers(1, 4), st.integers(0, 4), st.integers(0, 6)
)
STEPS = st.one_of(
    *[NAMES] * 6,
    st.sampled_from(["forget", "forget_all", "restore", "succeed"]),
    st.builds(Forget, st.just(()), st.lists(st.sampled_from("abcd"), max_size=2).map(tuple)),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_no_number_of_a_session_is_ever_applied_twice(
    steps: list[SessionKey | Forget | str],
) -> None:
    """Whatever the order of writes, copies of them, forgetting, snapshots and successors."""
    shard = Shard()
    applied: dict[tuple[str, int, int], WriteResult] = {}
    for step in steps:
        if isinstance(step, SessionKey):
            before = shard.state.last_revision
            result = shard.put(step)
            write = (step.session, step.born, step.sequence)
            if shard.state.last_revision > before:
                assert write not in applied
                applied[write] = result
            elif isinstance(result, PutResult):
                assert result == applied[write]
        elif isinstance(step, Forget):
            shard.apply(step)
        elif step == "forget":
            shard.apply(Forget((), ()))
        elif step == "forget_all":
            shard.forget_all()
        elif step == "restore":
            shard.restore()
        else:
            successor = shard.state.generation + 1
            shard.apply(Seal(successor))
            shard.restore(successor)
        assert shard.state.digest == shard.state.recomputed_digest()
