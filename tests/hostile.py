"""Messages that no process of Shoal sends: of the right types or of wrong ones, with any contents.

They are generated from the message types, so that a new message is covered as soon as it exists.
"""

from __future__ import annotations

import random
import types
import typing
from typing import Any

import msgspec

from shoal.protocol.task_set import TaskSet
from shoal.transport.frames import HEADER, encode

__all__ = ["Liar", "kinds"]

INTEGERS = (-(2**63), -(2**31), -2, -1, 0, 0, 1, 1, 2, 3, 5, 15, 16, 17, 600, 2**31, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
FLOATS = (0.0, -1.0, 1.5, 1e308, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    "a",
    "info",
    "keep",
    "fresh",
    "float32",
    "SGD",
    "dense",
    "table.weight",
    "\0",
    "../../x",
    "\N{SNOWMAN}",
    "x" * 20_000,
)


def kinds(union: Any) -> list[type]:
    """Return the message types of a direction."""
    return list(typing.get_args(union))


class Liar:
    """Generates messages.

    Args:
        chance: Source of randomness.
        integers: Integers that mean something in the job: lives, grants, slot numbers.
        wrong: Probability that a value has a wrong type.
    """

    def __init__(self, chance: random.Random, *, integers: typing.Sequence[int] = (), wrong: float = 0.0) -> None:
        self.chance = chance
        self.integers = list(integers)
        self.wrong = wrong

    def message(self, kind: type) -> Any:
        """Return a message of this kind as a dictionary, in which values may have wrong types."""
        return self._struct(kind, tagged=True)

    def frame(self, kind: type) -> bytes:
        """Return an encoded message, of which a part may be missing, or announced wrongly."""
        try:
            sent = encode(self.message(kind), payload=self.chance.choice((0, 0, 0, 0, 8, 4096)))
        except (OverflowError, UnicodeEncodeError):
            return self.noise()
        match self.chance.randrange(12):
            case 0:
                return sent[: self.chance.randrange(len(sent))]
            case 1:
                place = self.chance.randrange(len(sent))
                return sent[:place] + self.chance.randbytes(1) + sent[place + 1 :]
            case 2:
                return sent + sent
            case 3:
                lengths = (0, 1, 4096, 4097, 2**26, 2**26 + 1, 2**32 - 1)
                payloads = (0, 1, 2**20, 2**40, 2**40 + 1, 2**64 - 1)
                return HEADER.pack(b"SL", 0, self.chance.choice(lengths), self.chance.choice(payloads)) + sent[16:]
        return sent

    def noise(self) -> bytes:
        """Return random bytes, sometimes after a valid frame header."""
        body = self.chance.randbytes(self.chance.choice((0, 1, 15, 16, 100, 5000, 70_000)))
        return HEADER.pack(b"SL", 0, len(body), 0) + body if self.chance.random() < 0.5 else body

    def _struct(self, kind: type, *, tagged: bool = False) -> dict[str, Any]:
        """Return a message as a dictionary, which nothing validates."""
        hints = typing.get_type_hints(kind, include_extras=True)
        length = self.chance.choice((0, 1, 1, 2, 3, 16, 16, 40))
        values = {name: self.value(hints[name], length) for name in kind.__struct_fields__}
        if self.wrong and values and self.chance.random() < 0.1:
            del values[self.chance.choice(list(values))]
        return ({"type": kind.__name__} if tagged else {}) | values

    def value(self, type_: Any, length: int = 1) -> Any:
        """Return a value of this type, or of a wrong one; most lists of a struct have one length."""
        chance = self.chance
        if self.wrong and chance.random() < self.wrong:
            type_ = chance.choice((int, float, str, bytes, bool, type(None), list[int], dict[str, int]))
        origin, arguments = typing.get_origin(type_), typing.get_args(type_)
        if origin in {types.UnionType, typing.Union}:
            return self.value(chance.choice(arguments))
        if origin is typing.Literal:
            return chance.choice(arguments)
        if origin is typing.Annotated:
            return self._bounded(arguments[0], arguments[1])
        if origin is list:
            length = length if chance.random() < 0.95 else chance.choice((0, 1, 5))
            return [self.value(arguments[0]) for _ in range(length)]
        if origin is tuple:
            return [self.value(each) for each in arguments]
        if origin is dict:
            key = int if arguments[0] is int else str
            return {self._plain(key): self.value(arguments[1]) for _ in range(chance.choice((0, 1, 3)))}
        if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
            return self._struct(type_)
        return self._plain(type_)

    def _bounded(self, type_: Any, meta: msgspec.Meta) -> Any:
        """Return a value that is mostly within its bounds."""
        for _ in range(1 if self.chance.random() < 0.02 else 20):
            found = self._plain(type_)
            low = meta.ge is None or found >= meta.ge
            if low and (meta.le is None or found <= meta.le) and (meta.max_length or 1 << 60) >= len(str(found)):
                break
        return found

    def _plain(self, type_: Any) -> Any:
        chance = self.chance
        if type_ is bool:
            return chance.random() < 0.5
        if type_ is int:
            return chance.choice(self.integers if self.integers and chance.random() < 0.5 else INTEGERS)
        if type_ is float:
            return chance.choice(FLOATS)
        if type_ is str:
            return chance.choice(TEXTS)
        if type_ is bytes:
            return self._tasks() if chance.random() < 0.7 else chance.randbytes(chance.randrange(40))
        if type_ is type(None):
            return None
        return chance.choice((None, True, 0, 1.0, "x", [], {}, [[[]]], {"a": {"b": 1}}))

    def _tasks(self) -> bytes:
        made = TaskSet(self.chance.choice((1, 6, 60, 120, 4000)))
        for _ in range(self.chance.randrange(5)):
            made.add(self.chance.randrange(4), self.chance.randrange(made.tasks))
        return made.encode()
