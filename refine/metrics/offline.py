"""Prefetch: download everything needed, then prove that it works with the network off."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from refine.errors import UserError

T = TypeVar("T")


class _OffError(OSError):
    pass


def prefetch(get: Callable[[], T]) -> T:
    """Calls a function that gets everything a run needs, then calls it again with the network off.

    Args:
        get: Function that downloads what is missing, opens everything and tries it out.

    Returns:
        Result of the second call.

    Raises:
        UserError: Something cannot be had, or is not kept for later.
    """
    get()
    with network_off():
        try:
            return get()
        except _OffError as error:
            raise UserError("Something that is needed is not kept: it was asked for over the network again.") from error


@contextmanager
def network_off() -> Iterator[None]:
    """Context in which Python code of this process looks up no name and makes no connection."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise _OffError("the network is switched off, to prove that it is not needed")

    with ExitStack() as stack:
        for owner, name in (
            (socket.socket, "connect"),
            (socket.socket, "connect_ex"),
            (socket, "create_connection"),
            (socket, "getaddrinfo"),
        ):
            stack.enter_context(_replaced(owner, name, refuse))
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Context in which an object's attribute has another value; one that it inherited is inherited again after it."""
    own = vars(owner)
    previous = own.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if previous is None:
            delattr(owner, name)
        else:
            setattr(owner, name, previous)
