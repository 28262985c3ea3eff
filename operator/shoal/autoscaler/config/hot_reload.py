"""The hot reload of the AutoscalerConfig's file: the configuration in force stays until the file has another valid one."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from shoal.api import Problem
from shoal.autoscaler.config.reader import LARGEST, ConfigError, load
from shoal.autoscaler.config.types import AutoscalerConfig

__all__ = ["Change", "ConfigFile"]

_ABSENT_POLLS: Final = 3
"""Consecutive polls after which a file that is missing or empty is reported."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change that a poll found: a new configuration or a new problem.

    Attributes:
        config: The configuration that is in force from now on; None: the previous one stays in force.
        problem: Why the file is refused, as a message; empty: it is valid.
    """

    config: AutoscalerConfig | None = None
    problem: str = ""


class _FileAttributes(NamedTuple):
    """The attributes of a file by which a poll detects a change."""

    device: int
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, found: os.stat_result) -> _FileAttributes:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class ConfigFile:
    """A configuration in a file that can change at any time; `config` has the defaults until the file was first valid.

    The file is polled, not watched: the kubelet updates a mounted ConfigMap by swapping a symbolic link two folders up, which
    a watch of the file itself does not report. While the file's attributes do not change, a poll is one `stat`.

    A file that was valid and is now missing or empty may be in the middle of a write: it is reported only after `_ABSENT_POLLS`
    polls. A file that stays empty is refused as well: the defaults would enable an autoscaler that was disabled.

    Args:
        path: Path of the file.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._config = AutoscalerConfig()
        self._problem = ""
        self._attributes: _FileAttributes | None = None
        self._taken = False
        self._absent = 0

    @property
    def config(self) -> AutoscalerConfig:
        """The configuration in force."""
        return self._config

    @property
    def taken(self) -> bool:
        """Whether `config` was read from the file."""
        return self._taken

    @property
    def problem(self) -> str:
        """The present problem of the file; empty: none."""
        return self._problem

    def poll(self) -> Change | None:
        """Check the file once; return what has changed, or None. The first poll always returns a change."""
        try:
            text = self._changed_text()
            config = load(text) if text is not None else None
        except ConfigError as error:
            return self._refuse(str(ConfigError(error.problems, source=str(self._path))))
        return self._take(config) if config is not None else None

    def _changed_text(self) -> str | None:
        """Return the file's text; None: it has not changed, or may be in the middle of a write.

        Raises:
            ConfigError: It cannot be read.
        """
        try:
            found = self._path.stat()
            if _FileAttributes.of(found) == self._attributes:
                self._absent = 0
                return None
            # Reading from anything else, such as a FIFO, could block.
            if not stat.S_ISREG(found.st_mode):
                raise self._unreadable("is not a file; name the file itself, not the folder that it is in")
            with self._path.open("rb") as file:
                attributes = _FileAttributes.of(os.fstat(file.fileno()))
                content = file.read(LARGEST + 1)
        except FileNotFoundError:
            if self._in_between():
                return None
            raise self._unreadable("there is no such file") from None
        except OSError as error:
            raise self._unreadable(f"cannot be read: {error.strerror}") from None
        if not content.strip():
            if self._in_between():
                return None
            raise self._unreadable("is empty; write {} for the defaults")
        self._attributes, self._absent = attributes, 0
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ConfigError([Problem("", "is not text in UTF-8")]) from None

    def _in_between(self) -> bool:
        """Return whether the file may be in the middle of a write.

        At the start this is False: there is no configuration to protect, and the operator waits for one.
        """
        self._absent += 1
        return self._taken and self._absent < _ABSENT_POLLS

    def _unreadable(self, text: str) -> ConfigError:
        """Return an error, and have the next poll read the file whatever its attributes are."""
        self._attributes = None
        return ConfigError([Problem("", text)])

    def _refuse(self, problem: str) -> Change | None:
        if problem == self._problem:
            return None
        self._problem = problem
        return Change(problem=problem)

    def _take(self, config: AutoscalerConfig) -> Change | None:
        if self._taken and not self._problem and config == self._config:
            return None
        self._config, self._problem, self._taken = config, "", True
        return Change(config=config)
