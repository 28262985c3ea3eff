"""Users of an etcd with authentication: one user per job, with permission for the job's keys only.

Every call is idempotent and may be repeated after an interruption: it reads the present state and adds what is missing.
Each user has a role of the same name. The user is created before the role and deleted after it, so a list of the users
covers all roles.

The calls require etcd's user ``root`` or a user with the role ``root``.
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
"""Etcd's name of the user, and of the role, with all permissions."""
NOT_ON: Final = "authentication is not enabled"
"""Etcd's error text for a login while authentication is off."""
_READ_AND_WRITE: Final = 2
Answer = TypeVar("Answer")


class _Ask(Protocol):
    def __call__(self, call: Callable[[EtcdConnection], Answer], timeout_seconds: float | None) -> Answer:
        """Repeat a call, on new connections, until etcd answers."""
        ...


@contextmanager
def _ignoring(expected: str) -> Iterator[None]:
    """Ignore a StoreRefusedError whose message contains this text (the state is already as requested)."""
    try:
        yield
    except StoreRefusedError as error:
        if expected not in str(error):
            raise


class Accounts:
    """Administration of etcd's users; see `Store.accounts`.

    Every method blocks. While etcd is unreachable it retries for ``timeout_seconds``. It raises StoreRefusedError if
    the user of this store lacks the permission.

    Args:
        ask: Function that repeats a call until etcd answers.
        timeout_seconds: Timeout for an unreachable etcd. Seconds. Default: None, no limit.
    """

    def __init__(self, ask: _Ask, *, timeout_seconds: float | None = None) -> None:
        self._ask = ask
        self._timeout = timeout_seconds

    def within(self, seconds: float) -> Accounts:
        """Return a copy of this object with a timeout, in seconds, for an unreachable etcd."""
        return Accounts(self._ask, timeout_seconds=seconds)

    def enable(self, password: str) -> None:
        """Enable authentication; the user ``root`` with this password has all permissions.

        On a store without a user this is the last call that succeeds; see `Store.protect`.
        """
        self._user(ROOT, password)
        self._role(ROOT)
        self._grant(ROOT)
        self._call("AuthEnable", rpc.AuthEnableRequest())

    def ensure(self, user: str, password: str, *, prefix: str) -> None:
        """Create or update a user that may read and write the keys under a prefix, and nothing else.

        Args:
            user: Name of the user and of its role.
            password: At most 72 bytes. A changed password is set again, which invalidates the user's tokens.
            prefix: Prefix of the permitted keys, such as `JobKeys.prefix`. Not empty.

        Raises:
            ValueError: The prefix is empty.
        """
        if not prefix:
            raise ValueError("an empty prefix would be a right to every key")
        self._user(user, password)
        self._role(user)
        self._permit(user, prefix)
        self._grant(user)

    def users(self) -> list[str]:
        """Return the names of all users."""
        return list(self._call("UserList", rpc.AuthUserListRequest()).users)

    def remove(self, user: str) -> None:
        """Delete a user and its role; its tokens become invalid at once. A missing user or role is no error."""
        with _ignoring("role name not found"):
            self._call("RoleDelete", rpc.AuthRoleDeleteRequest(role=user))
        with _ignoring("user name not found"):
            self._call("UserDelete", rpc.AuthUserDeleteRequest(name=user))

    # --- Parts ---

    def _user(self, name: str, password: str) -> None:
        try:
            self._call("UserAdd", rpc.AuthUserAddRequest(name=name, password=password))
        except StoreRefusedError as error:
            if "already exists" not in str(error):
                raise
            # Setting a password invalidates the user's tokens, so the present password is tried first.
            if not self._password_valid(name, password):
                self._call("UserChangePassword", rpc.AuthUserChangePasswordRequest(name=name, password=password))

    def _password_valid(self, name: str, password: str) -> bool:
        request = rpc.AuthenticateRequest(name=name, password=password)
        try:
            self._ask(lambda connection: connection.log_in(request), self._timeout)
        except StoreRefusedError as error:
            if "authentication failed" in str(error) or NOT_ON in str(error):
                return False
            raise
        return True

    def _role(self, name: str) -> None:
        with _ignoring("already exists"):
            self._call("RoleAdd", rpc.AuthRoleAddRequest(name=name))

    def _permit(self, role: str, prefix: str) -> None:
        key = prefix.encode()
        required = (_READ_AND_WRITE, key, prefix_end(key))
        found = {
            (each.permType, each.key, each.range_end)
            for each in self._call("RoleGet", rpc.AuthRoleGetRequest(role=role)).perm
        }
        for _, start, end in found - {required}:
            self._call("RoleRevokePermission", rpc.AuthRoleRevokePermissionRequest(role=role, key=start, range_end=end))
        if found != {required}:
            permission = {"permType": required[0], "key": required[1], "range_end": required[2]}
            self._call("RoleGrantPermission", rpc.AuthRoleGrantPermissionRequest(name=role, perm=permission))

    def _grant(self, name: str) -> None:
        """Give the user the role of its name and revoke all other roles."""
        roles = set(self._call("UserGet", rpc.AuthUserGetRequest(name=name)).roles)
        for each in roles - {name}:
            self._call("UserRevokeRole", rpc.AuthUserRevokeRoleRequest(name=name, role=each))
        if name not in roles:
            self._call("UserGrantRole", rpc.AuthUserGrantRoleRequest(user=name, role=name))

    def _call(self, method: str, request: Any) -> Any:
        return self._ask(lambda connection: connection.administer(method, request), self._timeout)
