"""How long something lasts has one name in all commands."""

from collections.abc import Iterator

import click
import pytest

from raftkv.cli.bench import bench_command
from raftkv.cli.chaos import chaos_command


def lasting() -> Iterator[click.Command]:
    """Every command that measures or attacks for a time that can be chosen."""
    for command in (chaos_command, *bench_command.commands.values()):
        if any("--duration" in option.opts for option in command.params):
            yield command


def test_no_command_has_another_name_for_it() -> None:
    """``--duration`` is what they all have."""
    commands = list(lasting())
    assert len(commands) >= 10
    for command in (chaos_command, *bench_command.commands.values()):
        assert command in commands or not any("--seconds" in o.opts for o in command.params)


@pytest.mark.parametrize("command", list(lasting()), ids=lambda command: str(command.name))
def test_the_other_name_is_taken_and_not_shown(command: click.Command) -> None:
    """Both give the same; help has one of them, and errors name it."""
    parameter = next(option for option in command.params if "--duration" in option.opts)
    with command.make_context("c", []) as context:
        assert "--seconds" not in command.get_help(context)
        assert "--duration" in command.get_help(context)
    given = [
        command.make_context("c", [name, "7"]).params[str(parameter.name)]
        for name in ("--duration", "--seconds")
    ]
    assert given == [7, 7]
    with pytest.raises(click.BadParameter) as caught:
        command.make_context("c", ["--seconds", "-1"])
    assert "Invalid value for '--duration':" in caught.value.format_message()
