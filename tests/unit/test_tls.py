"""The end of a TLS connection to a broker that says nothing any more."""

import asyncio
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from headwater.settings import Settings

_LOOP_WAITS_S = 30.0  # for the peer's goodbye, in asyncio and uvloop


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of 127.0.0.1, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no `openssl` to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "broker.pem", folder / "broker.key"
    making = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-nodes", "-subj", "/CN=broker"]
    making += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(made)]
    done = subprocess.run(making, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return made, key


@pytest.fixture
def silent(certificate: tuple[Path, Path]) -> Iterator[int]:
    """The port of a server that agrees on TLS with one client, and then neither reads nor writes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    accepted: list[ssl.SSLSocket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10.0)

        def accept() -> None:
            accepted.append(context.wrap_socket(listening.accept()[0], server_side=True))

        thread = threading.Thread(target=accept)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()
    for each in accepted:
        each.close()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_is_closed_without_the_brokers_goodbye(
    silent: int, certificate: tuple[Path, Path], loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    settings = Settings(kafka_security_protocol="SSL", kafka_ssl_ca_file=certificate[0])
    context = settings.kafka_options()["ssl_context"]

    async def connect_and_close() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", silent, ssl=context)
        closing = asyncio.ensure_future(writer.wait_closed())
        writer.close()
        done, _ = await asyncio.wait({closing}, timeout=_LOOP_WAITS_S / 2)
        writer.transport.abort()
        assert done

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(connect_and_close())
