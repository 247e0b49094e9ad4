"""Reads the body of a request, bounded in size and in time."""

from __future__ import annotations

import anyio
from aiohttp import web

from hami.errors import CodecError


async def read_body(request: web.Request, *, max_bytes: int, within_seconds: float) -> bytes:
    """The whole body.

    Raises:
        CodecError: It is too large, too slow or broken.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(within_seconds):
            while chunk := await request.content.readany():
                size += len(chunk)
                if size > max_bytes:
                    raise CodecError(f"request body: expected at most {max_bytes} bytes, met more")
                chunks.append(chunk)
    except TimeoutError as error:
        raise CodecError(f"request body: not there within {within_seconds:g} s") from error
    except (OSError, web.RequestPayloadError) as error:
        raise CodecError(f"request body: broken: {error!r}") from error
    return b"".join(chunks)
