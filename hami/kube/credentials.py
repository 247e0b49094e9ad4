"""Where the cluster is and who we are there: kubeconfig or service account, kept fresh.

The only module that imports kubernetes_asyncio, whose job this is: it reads every form of
credentials (tokens, certificates, exec plugins, identity providers) and sets up TLS. Its request
path is not used: it copies each body through Python dictionaries, and its session asks a thread for
``.netrc`` and proxies before each request, which costs a millisecond. We send and receive bytes on
a session of our own over the connector that it has set up; proxies are looked up once.

Input: ``KubeSettings`` and the environment's ``KUBECONFIG``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import anyio
import yaml
from kubernetes_asyncio import config as kube_config
from kubernetes_asyncio.client import ApiClient, Configuration
from kubernetes_asyncio.config.incluster_config import (
    SERVICE_CERT_FILENAME,
    SERVICE_TOKEN_FILENAME,
    InClusterConfigLoader,
)

from hami import __version__
from hami.config import KubeSettings
from hami.errors import ConfigError, UnavailableError
from hami.logs import get_logger

log = get_logger(__name__)

USER_AGENT: Final = f"hami/{__version__}"
RENEW_AT_MOST_EVERY_SECONDS: Final = 10.0
EXEC_DEADLINE_SECONDS: Final = 60.0

# What reading somebody's kubeconfig raises: the library checks little before it subscripts.
_UNREADABLE = (
    kube_config.ConfigException,
    yaml.YAMLError,
    OSError,  # includes TLS material that OpenSSL refuses
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    AssertionError,
)


def find_kubeconfig(settings: KubeSettings, environment: Mapping[str, str]) -> str | None:
    """The kubeconfig to use, None for the pod's service account.

    Tried in order: the setting, ``KUBECONFIG`` (one path or several), ``~/.kube/config``, the
    service account. A path that is named but not there is an error, never passed over.

    Raises:
        ConfigError: None of them is there; the message says what was tried.
    """
    if settings.kubeconfig is not None:
        if not Path(settings.kubeconfig).expanduser().is_file():
            raise ConfigError(f"kube.kubeconfig: no file at {settings.kubeconfig}")
        return settings.kubeconfig
    if named := environment.get("KUBECONFIG"):
        if not any(Path(part).expanduser().is_file() for part in named.split(os.pathsep) if part):
            raise ConfigError(f"KUBECONFIG: no file at {named}")
        return named
    usual = Path(environment.get("HOME", "~")).expanduser() / ".kube" / "config"
    if usual.is_file():
        return str(usual)
    if environment.get("KUBERNETES_SERVICE_HOST"):
        return None
    raise ConfigError(
        "no way to the API server: kube.kubeconfig is not set, KUBECONFIG is not set, "
        f"there is no {usual}, and this is no pod (KUBERNETES_SERVICE_HOST is not set)"
    )


async def load(settings: KubeSettings, environment: Mapping[str, str]) -> Configuration:
    """Address, TLS and credentials as the library holds them.

    Raises:
        ConfigError: They are absent, unreadable or incomplete.
    """
    path = find_kubeconfig(settings, environment)
    configuration = Configuration()
    try:
        with anyio.fail_after(EXEC_DEADLINE_SECONDS):
            if path is None:
                InClusterConfigLoader(
                    token_filename=SERVICE_TOKEN_FILENAME,
                    cert_filename=SERVICE_CERT_FILENAME,
                    environ=dict(environment),
                ).load_and_set(configuration)
            else:
                await kube_config.load_kube_config(
                    config_file=path,
                    context=settings.context,
                    client_configuration=configuration,
                    persist_config=False,
                )
    except _UNREADABLE as error:
        source = path or "service account"
        raise ConfigError(f"{source}: cannot be used to reach a cluster: {error!r}") from error
    return configuration


class Credentials:
    """The session with the API server, and what authenticates and routes each request.

    ``session`` and ``route`` (arguments of aiohttp for each request) change when the credentials
    are renewed: use them at once.
    """

    def __init__(
        self,
        settings: KubeSettings,
        environment: Mapping[str, str],
        configuration: Configuration,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._environment = environment
        self._clock = clock
        self._configuration = configuration
        self._renewing = anyio.Lock()
        self._renewed_at = clock()
        self._api, self.session = _open(configuration)
        self.route = _route(configuration)

    @property
    def host(self) -> str:
        """Scheme, host and port, perhaps a path: what request paths are appended to."""
        return str(self._configuration.host).rstrip("/")

    async def headers(self) -> dict[str, str]:
        """User agent and authorization; a service account's token is read again when it ages."""
        headers: dict[str, str] = {"User-Agent": USER_AGENT, "Accept": "application/json"}
        try:
            await self._api.update_params_for_auth(headers, [], ["BearerToken"])
        except (kube_config.ConfigException, OSError) as error:
            raise UnavailableError(f"service account token: {error}") from error
        return {name: value.strip() for name, value in headers.items()}

    async def renew(self) -> bool:
        """Read the credentials again after a 401; whether it is worth asking once more.

        Expired exec tokens, rotated token files and re-issued certificates are all found this way.
        At most once in ten seconds, so that a wrong password does not run a plugin in a loop.
        """
        seen = self._renewed_at
        async with self._renewing:
            if self._renewed_at != seen:
                return True  # another request did it while this one waited
            if self._clock() - seen < RENEW_AT_MOST_EVERY_SECONDS:
                return False
            self._renewed_at = self._clock()
            try:
                await self._adopt(await load(self._settings, self._environment))
            except ConfigError as error:
                log.warning("credentials_not_renewed", error=str(error))
                return False
            log.info("credentials_renewed", host=self.host)
            return True

    async def close(self) -> None:
        """Close every connection."""
        await self.session.close()
        await self._api.close()

    async def _adopt(self, fresh: Configuration) -> None:
        retired: list[ApiClient | aiohttp.ClientSession] = []
        if _tls(self._configuration) != _tls(fresh):
            retired = [self.session, self._api]
            self._api, self.session = _open(fresh)
        self._configuration = self._api.configuration = fresh
        self.route = _route(fresh)
        for one in retired:
            await one.close()  # its watches break, and begin again on the new session


def _open(configuration: Configuration) -> tuple[ApiClient, aiohttp.ClientSession]:
    try:
        api = ApiClient(configuration)
    except _UNREADABLE as error:
        raise ConfigError(f"{configuration.host}: TLS cannot be set up: {error}") from error
    connector = api.rest_client.pool_manager.connector
    return api, aiohttp.ClientSession(connector=connector, connector_owner=False)


def _route(configuration: Configuration) -> dict[str, Any]:
    """Proxy and server name; the kubeconfig's proxy goes before the environment's.

    The environment's is never meant for a server on this machine, as kubectl sees it too.
    """
    address = urlsplit(str(configuration.host))
    proxy = configuration.proxy
    if not proxy and not _is_loopback(address.hostname) and not proxy_bypass(address.netloc):
        proxy = getproxies().get(address.scheme)
    options = {
        "proxy": proxy,
        "proxy_headers": configuration.proxy_headers,
        "server_hostname": configuration.tls_server_name,
    }
    return {option: value for option, value in options.items() if value}


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


def _tls(configuration: Configuration) -> tuple[object, ...]:
    return (
        configuration.host,
        configuration.ssl_ca_cert,
        configuration.cert_file,
        configuration.key_file,
        configuration.verify_ssl,
    )
