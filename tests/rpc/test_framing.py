"""The frame decoder, against every way of cutting a stream."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.rpc.framing import FrameDecoder, FrameError
from tests.support.frames import encode_frame

FRAMES = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=20)


def decode_all(decoder: FrameDecoder) -> list[tuple[int, bytes]]:
    """Return copies: the views end with the next read."""
    return [(channel, bytes(payload)) for channel, payload in decoder.frames()]


@given(frames=FRAMES, cuts=st.lists(st.integers(1, 400), max_size=50), size=st.integers(1, 64))
def test_any_cut_of_the_stream_gives_the_same_frames(
    frames: list[tuple[int, bytes]], cuts: list[int], size: int
) -> None:
    """Frames come out as they went in, however the reads fall and however small the buffer is."""
    stream = b"".join(encode_frame(channel, payload) for channel, payload in frames)
    decoder = FrameDecoder(300, buffer_bytes=size)
    seen = []
    while stream:
        cut = cuts.pop() if cuts else len(stream)
        decoder.feed(stream[:cut])
        stream = stream[cut:]
        seen += decode_all(decoder)
    assert seen == frames
    assert decoder.buffered_bytes == 0


@given(data=st.binary(max_size=2000), cut=st.integers(1, 100))
def test_garbage_gives_frames_or_a_frame_error(data: bytes, cut: int) -> None:
    """Arbitrary bytes never raise anything else and never make the buffer outgrow the bound."""
    decoder = FrameDecoder(256, buffer_bytes=16)
    seen = 0
    try:
        for begin in range(0, len(data), cut):
            decoder.feed(data[begin : begin + cut])
            for _, payload in decoder.frames():
                assert len(payload) <= 256
                seen += len(payload) + 5
    except FrameError:
        return
    assert seen + decoder.buffered_bytes == len(data)
    assert len(decoder.get_buffer()) <= 4 * (256 + 5 + 100)


def test_frames_can_be_left_early_and_taken_up_again() -> None:
    """Back-pressure stops between two frames without losing or repeating one."""
    decoder = FrameDecoder(10)
    decoder.feed(b"".join(encode_frame(1, bytes([number])) for number in range(3)))
    assert [bytes(payload) for _, (_, payload) in zip(range(1), decoder.frames(), strict=False)]
    assert decode_all(decoder) == [(1, b"\1"), (1, b"\2")]


def test_the_bound_may_change_between_two_frames_of_one_read() -> None:
    """A larger frame right behind the hello is taken once the hello raised the bound."""
    decoder = FrameDecoder(4)
    decoder.feed(encode_frame(0, b"hi") + encode_frame(1, b"longer"))
    seen = []
    for _, payload in decoder.frames():
        seen.append(bytes(payload))
        decoder.payload_bytes_max = 100
    assert seen == [b"hi", b"longer"]


@pytest.mark.parametrize("length", [0, 12, 2**31, 2**32 - 1])
def test_a_length_out_of_bounds_is_refused_before_its_payload_comes(length: int) -> None:
    """Five bytes are enough to refuse; nothing is allocated for what they claim."""
    decoder = FrameDecoder(10)
    decoder.feed(length.to_bytes(4, "little") + b"\0")
    with pytest.raises(FrameError, match="allowed"):
        decode_all(decoder)


def test_a_large_frame_leaves_no_large_buffer_behind() -> None:
    """Memory goes back after an outsized frame."""
    decoder = FrameDecoder(10 * 2**20)
    decoder.feed(encode_frame(1, bytes(9 * 2**20)))
    assert [len(payload) for _, payload in decoder.frames()] == [9 * 2**20]
    assert len(decoder.get_buffer()) <= 2**20
