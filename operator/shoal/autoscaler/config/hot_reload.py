"""The AutoscalerConfig in a file that may change at any time: what was in force stays until there is a better one."""

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

_PATIENCE: Final = 3
"""Looks in a row after which a file that was there is believed to be gone, or empty."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What one look at a file found to be new: one of the two.

    Attributes:
        config: The configuration that is in force from now on; None: the one before stays.
        problem: Why the file cannot be taken, for people; empty: it can.
    """

    config: AutoscalerConfig | None = None
    problem: str = ""


class _Mark(NamedTuple):
    """By which a file is known to be the one that was read."""

    device: int
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, found: os.stat_result) -> _Mark:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class ConfigFile:
    """A configuration in a file that may change at any time; `config` has the defaults until one was taken.

    It is polled, not watched: the kubelet changes a mounted ConfigMap by swapping a link two folders up, which no watch of
    the file itself tells. A poll is one look at the file's attributes as long as these stay the same.

    A file that was read and then is gone or empty is what a writer in between leaves. Nothing is said of it for two polls.
    One that stays empty is refused as well: to take the defaults would let an autoscaler act that was told not to.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._config = AutoscalerConfig()
        self._problem = ""
        self._mark: _Mark | None = None
        self._taken = False
        self._absent = 0

    @property
    def config(self) -> AutoscalerConfig:
        """What is in force."""
        return self._config

    @property
    def taken(self) -> bool:
        """Whether `config` is from the file."""
        return self._taken

    @property
    def problem(self) -> str:
        """What is wrong with the file now; empty: nothing."""
        return self._problem

    def poll(self) -> Change | None:
        """Look at the file once; what is new, or None. The first poll always tells something."""
        try:
            text = self._news()
            config = load(text) if text is not None else None
        except ConfigError as error:
            return self._refuse(str(ConfigError(error.problems, source=str(self._path))))
        return self._take(config) if config is not None else None

    def _news(self) -> str | None:
        """What the file holds, if that may be new.

        Raises:
            ConfigError: It cannot be read.
        """
        try:
            found = self._path.stat()
            if _Mark.of(found) == self._mark:
                self._absent = 0
                return None
            # Anything else might keep its reader waiting for ever.
            if not stat.S_ISREG(found.st_mode):
                raise self._unreadable("is not a file; name the file itself, not the folder that it is in")
            with self._path.open("rb") as file:
                mark = _Mark.of(os.fstat(file.fileno()))
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
        self._mark, self._absent = mark, 0
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ConfigError([Problem("", "is not text in UTF-8")]) from None

    def _in_between(self) -> bool:
        """Whether the file may be on its way; at the start there is nothing to protect, and somebody who waits."""
        self._absent += 1
        return self._taken and self._absent < _PATIENCE

    def _unreadable(self, text: str) -> ConfigError:
        """An error after which the file is read again whatever its attributes are."""
        self._mark = None
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
