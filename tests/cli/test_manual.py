"""The manual page of the commands is what the commands say."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.main import get_command

from shoal.cli.main import app
from shoal.cli.tools.manual import manual

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_generated_from_the_commands():
    assert PAGE.read_text() == manual(), "run: python -m shoal.cli.tools.manual > docs/cli.md"


@pytest.mark.parametrize("name", sorted(get_command(app).commands))
def test_each_command_says_what_it_does(name):
    command = get_command(app).commands[name]
    assert command.help
    assert all(option.help for option in command.params if option.name != "help"), name
