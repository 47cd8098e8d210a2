"""An application that is made when it is first asked."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING

from werkzeug.test import Client

from raftkv.web.serve.deferred import Deferred

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def test_threads_that_ask_at_once_get_the_same_application() -> None:
    """It is made once, and not before somebody asks."""
    made = []

    def hello(_environ: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
        start_response("200 OK", [])
        return [b"hello"]

    def make() -> "WSGIApplication":
        made.append(True)
        return hello

    deferred, together = Deferred(make), Barrier(4)

    def ask(_number: int) -> bytes:
        together.wait(10)
        return Client(deferred).get("/").get_data()

    assert made == []
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(4))) == {b"hello"}
    assert made == [True]
