"""Why a TLS connection fails, in words that name the file or the name that is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

from tierline.core.errors import LinkUnavailable, SecurityError, TierlineError
from tierline.core.link.tls import (
    INVITE_AGAIN,
    Identity,
    TlsFiles,
    identity_of,
    load_pair,
    split_address,
    tls_context,
    verdict_of,
)

# OpenSSL verify codes (x509_vfy.h).
_WRONG_NAME, _WRONG_ADDRESS = 62, 64


async def explain_failure(address: str, ca_pem: bytes, tls: TlsFiles | None, timeout_s: float = 5.0) -> TierlineError:
    """Why a TLS connection to `address` fails, found by dialling once more with the standard library.

    gRPC reports every cause alike as UNAVAILABLE. Returns a SecurityError that names the cause, or LinkUnavailable
    where TLS is not to blame.
    """
    host, port = split_address(address)
    context = tls_context(server=False)
    context.check_hostname = True
    try:
        context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        return SecurityError(f"{address}: the authority to trust is no readable certificate ({error}); {INVITE_AGAIN}")
    if tls is not None:
        load_pair(context, tls)
    try:
        accepted = await asyncio.wait_for(_is_answered(host, port, context), timeout_s)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code not in (_WRONG_NAME, _WRONG_ADDRESS):
            verdict = verdict_of(error, "the authority trusted here")
            return SecurityError(
                f"{address}: the server's certificate {verdict}; renew it there, or join its fleet (`node join`)"
            )
        context.check_hostname = False
        listed = ""
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            listed = ", ".join((await asyncio.wait_for(_ask_identity(host, port, context), timeout_s)).hosts)
        return SecurityError(
            f"{address}: the server's certificate is not for {host!r} but lists: {listed or 'no name'}; dial one of "
            f"these, or run `tierline cloud init --host {host}` there to add it"
        )
    except ssl.SSLError as error:
        reason = error.reason or ""
        if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_EOF_WHILE_READING", "RECORD_LAYER_FAILURE"):
            return SecurityError(f"{address}: the server does not speak TLS; check the port, or its --insecure")
        return _refused(address, tls) if "ALERT" in reason else SecurityError(f"{address}: TLS failed ({reason})")
    except (OSError, asyncio.TimeoutError) as error:
        reason = str(error) or "timed out"
        return LinkUnavailable(f"{address}: not reachable ({reason}); is it running, is the port open?")
    if not accepted:
        return _refused(address, tls)
    return LinkUnavailable(f"{address}: TLS is in order, but the call failed; try again")


def _refused(address: str, tls: TlsFiles | None) -> SecurityError:
    if tls is None:
        return SecurityError(f"{address}: the server demands a certificate and this node has none; {INVITE_AGAIN}")
    return SecurityError(f"{address}: the server refused this node's certificate, {tls.cert}; {INVITE_AGAIN}")


@contextlib.asynccontextmanager
async def _dialled(
    host: str, port: int, context: ssl.SSLContext
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()  # a polite close would wait for the other side's


async def _ask_identity(host: str, port: int, context: ssl.SSLContext) -> Identity:
    async with _dialled(host, port, context) as (_, writer):
        return identity_of(writer.get_extra_info("peercert"))


async def _is_answered(host: str, port: int, context: ssl.SSLContext) -> bool:
    """Greet as HTTP/2 does: in TLS 1.3 a server judges our certificate only after our side of the handshake is done."""
    async with _dialled(host, port, context) as (reader, writer):
        try:
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            return bool(await reader.read(1))
        except (ConnectionResetError, BrokenPipeError):
            return False
