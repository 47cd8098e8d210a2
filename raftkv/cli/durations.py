"""How long a measurement or an attack lasts: one option for all commands."""

import contextlib
from collections.abc import Iterator

import click

ALIAS = "--seconds"


class Duration(click.Option):
    """``--duration``, in seconds; :data:`ALIAS` is taken as well, but not advertised.

    For ``click.option("--duration", ALIAS, ..., cls=Duration)``.
    """

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Describe it under its one name."""
        with self._one_name():
            return super().get_help_record(ctx)

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Name it in an error."""
        with self._one_name():
            return super().get_error_hint(ctx)

    @contextlib.contextmanager
    def _one_name(self) -> Iterator[None]:
        names = self.opts
        self.opts = [name for name in names if name != ALIAS]
        try:
            yield
        finally:
            self.opts = names
