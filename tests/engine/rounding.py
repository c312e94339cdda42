"""Comparing what a model wrote twice.

Rounding differs a little with what lies in the cache beside a request and with how many threads compute, so two words
that are as likely can change places, rarely. What is wrong stays wrong however often it is tried."""

import functools
from collections.abc import Awaitable, Callable
from typing import Final, ParamSpec

P = ParamSpec("P")
TRIES: Final = 5


def alike_once(test: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """The test holds if it holds in one of a few tries."""

    @functools.wraps(test)
    async def tried(*args: P.args, **kwargs: P.kwargs) -> None:
        for _ in range(TRIES - 1):
            try:
                return await test(*args, **kwargs)
            except AssertionError:
                continue
        return await test(*args, **kwargs)

    return tried
