"""TLS for the server, with certificate files that are read again when they change.

A new pair is loaded as a whole and then put in the place of the old one: connections that are open
keep theirs, new ones get the new. A pair that cannot be loaded is reported and the old one stays.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import anyio
import anyio.to_thread

from hami.config import ControllerSettings
from hami.controllers.counters import ControllerCounters
from hami.errors import ConfigError
from hami.logs import get_logger

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Where certificate chain and private key are (PEM)."""

    cert_file: Path
    key_file: Path


def pair_of(settings: ControllerSettings) -> Pair | None:
    """The configured files; None for plain HTTP.

    Raises:
        ConfigError: Only one of them is given.
    """
    if settings.cert_file is None and settings.key_file is None:
        return None
    if settings.cert_file is None or settings.key_file is None:
        raise ConfigError("controller.cert_file and controller.key_file: give both or neither")
    return Pair(cert_file=Path(settings.cert_file), key_file=Path(settings.key_file))


class Certificates:
    """The current pair, behind one context that servers can hold on to."""

    def __init__(self, pair: Pair, *, counters: ControllerCounters) -> None:
        """Load the pair.

        Raises:
            ConfigError: It cannot be loaded.
        """
        self._pair = pair
        self._counters = counters
        try:
            self._content = self._read()
            self._current = self._load()
            self.context = self._load()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"controller.cert_file {pair.cert_file} with key {pair.key_file}: {error}"
            ) from error
        self.context.sni_callback = self._choose

    async def watch(self, *, every_seconds: float) -> NoReturn:
        """Look at the files again and again, and use what has changed."""
        while True:
            await anyio.sleep(every_seconds)
            await anyio.to_thread.run_sync(self.renew)

    def renew(self) -> None:
        """Use the files' new content, if it is new and sound. Blocks on the file system."""
        try:
            content = self._read()
            if content == self._content:
                return
            self._current = self._load()
        except (OSError, ssl.SSLError) as error:
            self._counters.certificates.labels("refused").inc()
            log.warning("certificate_refused", file=str(self._pair.cert_file), error=str(error))
            return
        self._content = content
        self._counters.certificates.labels("loaded").inc()
        log.info("certificate_renewed", file=str(self._pair.cert_file))

    def _read(self) -> tuple[bytes, bytes]:
        return self._pair.cert_file.read_bytes(), self._pair.key_file.read_bytes()

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._pair.cert_file, self._pair.key_file)
        return context

    def _choose(
        self, connection: ssl.SSLSocket | ssl.SSLObject, _: str | None, __: ssl.SSLContext
    ) -> None:
        """Give a new connection the current pair, before its handshake goes on."""
        connection.context = self._current
