"""``python -m triton_repo.gateway``: the OpenAI-compatible endpoint as a process."""

from __future__ import annotations

import logging
import socket
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType

import uvicorn

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.processes import raise_open_files
from triton_repo.addresses import at, bound
from triton_repo.client.client import Client, Retry, Tls
from triton_repo.gateway import logs
from triton_repo.gateway.access import Access
from triton_repo.gateway.app import Gateway, create
from triton_repo.gateway.connections import PER_ROUND, Connections, Listener
from triton_repo.gateway.middleware import Observe, Traffic, cors
from triton_repo.gateway.options import parse
from triton_repo.gateway.protocol import Connection

# After the generations are ended, for their last events to go out.
_FAREWELL_S = 2
_LOG = logging.getLogger(__name__)


class GatewayServer(uvicorn.Server):
    """uvicorn that, when told to end, first finishes what runs and refuses what comes."""

    def __init__(
        self,
        config: uvicorn.Config,
        traffic: Traffic,
        client: Client,
        drain_timeout_s: float,
        each_second: Sequence[Callable[[], None]],
    ):
        super().__init__(config)
        self._each_second = each_second
        self._traffic = traffic
        self._client = client
        self._drain_timeout_s = drain_timeout_s
        self._end = float("inf")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        scheme = "https" if self.config.is_ssl else "http"
        for each in sockets or ():
            _LOG.info("listening", extra={"fields": {"url": f"{scheme}://{at(*each.getsockname()[:2])}"}})

    def handle_exit(self, _sig: int, _frame: FrameType | None) -> None:
        """On SIGTERM and Ctrl-C; the second one ends at once."""
        self._end = 0.0 if self._traffic.draining else time.monotonic() + self._drain_timeout_s
        self._traffic.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; whether to end."""
        if counter % 10 == 0:
            for due in self._each_second:
                due()
        if self._traffic.draining and not self.should_exit:
            late = time.monotonic() > self._end
            if late and self._traffic.active:
                _LOG.warning("ended with requests under way", extra={"fields": {"requests": self._traffic.active}})
                await self._client.close()
            self.should_exit = late or not self._traffic.active
        return await super().on_tick(counter)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to end. Returns 0, or 2 for a mistake on the command line, such as a port in use."""
    try:
        given = parse(arguments)
        tls = None if given.grpc_ca is None else Tls(given.grpc_ca, given.grpc_cert, given.grpc_key, given.grpc_name)
        # Who asks again is the client, which knows how long it cares to wait.
        client = Client(given.grpc_url, tls=tls, retry=Retry(attempts=1))
        access = Access(given.api_key_file)
        connections = Connections(raise_open_files())
        listener = Listener(connections, bound("--port", given.host, given.port))
    except FieldError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sparing = logs.start()
    traffic = Traffic()
    config = uvicorn.Config(
        cors(Observe(create(Gateway(client, given.model_name)), traffic, access), given.cors_origin),
        http=partial(Connection, connections),  # type: ignore[arg-type]
        ws="none",
        backlog=PER_ROUND,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_FAREWELL_S,
        timeout_keep_alive=given.keep_alive,
        ssl_certfile=given.tls_cert,
        ssl_keyfile=given.tls_key,
        ssl_ca_certs=given.tls_client_ca,
        ssl_cert_reqs=ssl.CERT_REQUIRED if given.tls_client_ca else ssl.CERT_NONE,
    )
    server = GatewayServer(config, traffic, client, given.drain_timeout, (connections.sweep, sparing.tell))
    server.run([listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
