"""Downloading beforehand, and proving that everything then works with the network off."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest import mock

from refine.errors import UserError

T = TypeVar("T")


class _OffError(OSError):
    pass


def prefetch(get: Callable[[], T]) -> T:
    """Calls a function that gets everything a run needs, and calls it again where no connection can be made.

    Args:
        get: downloads what is missing, opens everything and tries it out.

    Returns:
        What the second call returned.

    Raises:
        UserError: something cannot be had, or is not kept for later.
    """
    get()
    with network_off():
        try:
            return get()
        except _OffError as error:
            raise UserError(
                "Something that is needed cannot be kept: it is asked for over the network again."
            ) from error


@contextmanager
def network_off() -> Iterator[None]:
    """No name is looked up and no connection made by Python code in this process."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise _OffError("the network is switched off, to prove that it is not needed")

    with (
        mock.patch.object(socket.socket, "connect", refuse),
        mock.patch.object(socket.socket, "connect_ex", refuse),
        mock.patch.object(socket, "create_connection", refuse),
        mock.patch.object(socket, "getaddrinfo", refuse),
    ):
        yield
