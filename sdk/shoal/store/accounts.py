"""The users of an etcd that asks who is there: one for each job, with rights on the job's keys alone.

Every call may be repeated, also one that was cut short: it looks at what is there and adds what is missing. A user has a
role of its own name; it is made before its role and goes after it, so who lists the users knows of every role too.

Only etcd's ``root``, or a user with the role ``root``, may call these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar

from shoal.store._stubs import rpc
from shoal.store.connection import EtcdConnection, prefix_end
from shoal.store.errors import StoreRefusedError

__all__ = ["NOT_ON", "ROOT", "Accounts"]

ROOT: Final = "root"
"""Etcd's own name of the user, and of the role, that may do everything."""
NOT_ON: Final = "authentication is not enabled"
"""Etcd's words to who logs in although nobody needs to."""
_READ_AND_WRITE: Final = 2
Answer = TypeVar("Answer")


class _Ask(Protocol):
    def __call__(self, call: Callable[[EtcdConnection], Answer], patience_seconds: float | None) -> Answer:
        """Call with a connection until etcd answers."""
        ...


@contextmanager
def _unless(words: str) -> Iterator[None]:
    """That it is so already is no error."""
    try:
        yield
    except StoreRefusedError as error:
        if words not in str(error):
            raise


class Accounts:
    """Etcd's users; to be had from a store: `Store.accounts`.

    Every method blocks, waits for an etcd that is away for as long as it was told to (None: for ever), and raises
    StoreRefusedError if this store's own user has not the right to do that.

    Args:
        ask: Calls etcd until it answers.
        patience_seconds: How long etcd may be away.
    """

    def __init__(self, ask: _Ask, *, patience_seconds: float | None = None) -> None:
        self._ask = ask
        self._patience = patience_seconds

    def within(self, seconds: float) -> Accounts:
        """The same, that waits no longer than this for an etcd that is away."""
        return Accounts(self._ask, patience_seconds=seconds)

    def turn_on(self, password: str) -> None:
        """Let nobody in without a password from now on; `root` may do everything.

        On a store without a user this is the last call that succeeds; see `Store.protect`.
        """
        self._user(ROOT, password)
        self._role(ROOT)
        self._grant(ROOT)
        self._call("AuthEnable", rpc.AuthEnableRequest())

    def ensure(self, user: str, password: str, *, prefix: str) -> None:
        """A user with this password and the right to read and write all keys under the prefix, and no other right.

        Args:
            user: Its name, and that of its role.
            password: At most 72 bytes. Another one than before is set anew, which ends the user's logins.
            prefix: Such as `JobKeys.prefix`.
        """
        if not prefix:
            raise ValueError("an empty prefix would be a right to every key")
        self._user(user, password)
        self._role(user)
        self._permit(user, prefix)
        self._grant(user)

    def users(self) -> list[str]:
        """The names of all users."""
        return list(self._call("UserList", rpc.AuthUserListRequest()).users)

    def remove(self, user: str) -> None:
        """Remove a user and the role of its name; its logins end at once. That they are gone already is fine."""
        with _unless("role name not found"):
            self._call("RoleDelete", rpc.AuthRoleDeleteRequest(role=user))
        with _unless("user name not found"):
            self._call("UserDelete", rpc.AuthUserDeleteRequest(name=user))

    # --- Parts ---

    def _user(self, name: str, password: str) -> None:
        try:
            self._call("UserAdd", rpc.AuthUserAddRequest(name=name, password=password))
        except StoreRefusedError as error:
            if "already exists" not in str(error):
                raise
            # Setting a password ends the user's logins, so it is tried first.
            if not self._opens(name, password):
                self._call("UserChangePassword", rpc.AuthUserChangePasswordRequest(name=name, password=password))

    def _opens(self, name: str, password: str) -> bool:
        request = rpc.AuthenticateRequest(name=name, password=password)
        try:
            self._ask(lambda connection: connection.log_in(request), self._patience)
        except StoreRefusedError as error:
            if "authentication failed" in str(error) or NOT_ON in str(error):
                return False
            raise
        return True

    def _role(self, name: str) -> None:
        with _unless("already exists"):
            self._call("RoleAdd", rpc.AuthRoleAddRequest(name=name))

    def _permit(self, role: str, prefix: str) -> None:
        key = prefix.encode()
        wanted = (_READ_AND_WRITE, key, prefix_end(key))
        found = {
            (each.permType, each.key, each.range_end)
            for each in self._call("RoleGet", rpc.AuthRoleGetRequest(role=role)).perm
        }
        for _, start, end in found - {wanted}:
            self._call("RoleRevokePermission", rpc.AuthRoleRevokePermissionRequest(role=role, key=start, range_end=end))
        if found != {wanted}:
            permission = {"permType": wanted[0], "key": wanted[1], "range_end": wanted[2]}
            self._call("RoleGrantPermission", rpc.AuthRoleGrantPermissionRequest(name=role, perm=permission))

    def _grant(self, name: str) -> None:
        """The user has the role of its name, and no other."""
        roles = set(self._call("UserGet", rpc.AuthUserGetRequest(name=name)).roles)
        for each in roles - {name}:
            self._call("UserRevokeRole", rpc.AuthUserRevokeRoleRequest(name=name, role=each))
        if name not in roles:
            self._call("UserGrantRole", rpc.AuthUserGrantRoleRequest(user=name, role=name))

    def _call(self, method: str, request: Any) -> Any:
        return self._ask(lambda connection: connection.administer(method, request), self._patience)
