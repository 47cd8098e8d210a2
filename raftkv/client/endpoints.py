"""Which node to ask: stay with one that answers, leave one that does not for a while."""

import os
import random
import threading
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from raftkv.client.clock import boot_s

SUSPECT_S = 1.0
"""How long a node that did not answer is asked only if all others do not either."""

DEFAULT_ENDPOINT = "http://127.0.0.1:8000"
"""Where the first node of ``raftkv dev`` listens."""

ENDPOINTS_VARIABLE = "RAFTKV_ENDPOINTS"


def endpoints_of_environment() -> list[str]:
    """The URLs that commas or spaces separate in ``RAFTKV_ENDPOINTS``, or the default one.

    Raises:
        ValueError: The variable has something in it, but no URL.
    """
    text = os.environ.get(ENDPOINTS_VARIABLE, "")
    urls = text.replace(",", " ").split()
    if text and not urls:
        raise ValueError(f"{ENDPOINTS_VARIABLE}: {text!r} is no list of URLs")
    return urls or [DEFAULT_ENDPOINT]


class Endpoints:
    """The nodes' URLs. The lock guards the choice, the suspicions and the refusals.

    Of a node that refuses connections is kept when it did so the last time but one, and last.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        clock: Callable[[], float] = boot_s,
        choose: Callable[[int], int] = random.randrange,
    ) -> None:
        if isinstance(urls, str):
            urls = [urls]
        if not urls:
            raise ValueError("at least one endpoint is needed")
        self._urls = [normalized(url) for url in urls]
        self._clock = clock
        self._lock = threading.Lock()
        self._suspect_until = dict.fromkeys(self._urls, float("-inf"))
        self._refused_at: dict[str, tuple[float, float]] = {}
        # Each client begins somewhere else, so that many of them do not all ask the first node.
        self._current = choose(len(self._urls))

    def __len__(self) -> int:
        return len(self._urls)

    @property
    def urls(self) -> tuple[str, ...]:
        """All of them, in the order given."""
        return tuple(self._urls)

    def pick(self) -> str:
        """The current node, or the next one that is not suspected."""
        with self._lock:
            now = self._clock()
            for offset in range(len(self._urls)):
                place = (self._current + offset) % len(self._urls)
                if self._suspect_until[self._urls[place]] <= now:
                    self._current = place
                    break
            return self._urls[self._current]

    def suspect(self, url: str) -> None:
        """``url`` did not answer: ask the next one, and come back to it later."""
        with self._lock:
            self._suspect_until[url] = self._clock() + SUSPECT_S
            self._leave(url)

    def refused(self, url: str, *, for_good: bool) -> None:
        """``url`` refuses connections; ``for_good``: asking it again gives the same."""
        with self._lock:
            now = self._clock()
            _, before = self._refused_at.get(url, (float("-inf"), float("-inf")))
            self._refused_at[url] = (now if for_good else before, now)

    def answered(self, url: str) -> None:
        """``url`` takes connections."""
        if self._refused_at:
            with self._lock:
                self._refused_at.pop(url, None)

    def all_refuse_since(self, moment: float) -> bool:
        """Whether every node has refused since then: all of them twice, but those for good once."""
        with self._lock:
            never = (float("-inf"), float("-inf"))
            return all(self._refused_at.get(url, never)[0] >= moment for url in self._urls)

    def move_on(self, url: str) -> None:
        """``url`` answered that it cannot now: ask the next one, without suspecting it."""
        with self._lock:
            self._leave(url)

    def _leave(self, url: str) -> None:
        # Of several threads that leave the same node at once only the first moves the choice.
        if self._urls[self._current] == url:
            self._current = (self._current + 1) % len(self._urls)


def normalized(url: str) -> str:
    """An endpoint as scheme, host and port, without a slash at its end.

    Raises:
        ValueError: It is none; the message says what one looks like.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{url!r} is not a URL such as http://127.0.0.1:8000")
    if "," in parts.netloc:
        raise ValueError(f"{url!r}: an endpoint is one URL; give several one by one")
    if parts.path.strip("/") or parts.query or parts.fragment or parts.username:
        raise ValueError(f"{url!r}: an endpoint is scheme, host and port only")
    try:
        parts.port  # noqa: B018 -- read to be judged
    except ValueError as error:
        raise ValueError(f"{url!r} is not a URL such as http://127.0.0.1:8000: {error}") from error
    return f"{parts.scheme}://{parts.netloc}"
