"""A WSGI application that is made when it is first asked.

Importing Flask and making the application takes longer than everything else that a worker needs to
serve keys; three workers that start on two cores would keep the first write waiting for it.
"""

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class Deferred:
    """Calls ``make`` once, in whichever thread comes first; safe to use from several."""

    def __init__(self, make: Callable[[], "WSGIApplication"]) -> None:
        self._make = make
        self._app: WSGIApplication | None = None
        self._lock = threading.Lock()

    def __call__(  # noqa: D102 -- as WSGI defines it
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        return self.made()(environ, start_response)

    def made(self) -> "WSGIApplication":
        """Return the application, made if need be."""
        with self._lock:
            if self._app is None:
                self._app = self._make()
            return self._app
