"""The cloud's half of enrolment: a port with server-only TLS that turns an invitation into a certificate, once."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Sequence

import grpc
import grpc.aio

from tierline.core.clock import MonotonicClock
from tierline.core.errors import PortInUse, SecurityError
from tierline.core.invite import InviteStore
from tierline.core.link.tls import TlsFiles, server_credentials
from tierline.core.pki import NODE_DAYS, Authority, check_host, describe, issue_node
from tierline.core.protocols import Clock
from tierline.v1 import enrol_pb2, enrol_pb2_grpc

MAX_REQUEST_BYTES = 32 * 1024
MAX_HOSTS = 16
MAX_CONCURRENT = 8


class RateLimit:
    """A token bucket per caller: `burst` tries at once, then one every `period_s`. Remembers 1024 callers."""

    def __init__(self, clock: Clock, *, burst: int = 10, period_s: float = 3.0) -> None:
        self._clock = clock
        self._burst = burst
        self._period_s = period_s
        self._buckets: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def wait_s(self, caller: str) -> float:
        """0.0 and one try taken, or how long to wait for the next."""
        now_ns = self._clock.now_ns()
        left, then_ns = self._buckets.pop(caller, (float(self._burst), now_ns))
        left = min(float(self._burst), left + (now_ns - then_ns) / 1e9 / self._period_s)
        allowed = left >= 1.0
        self._buckets[caller] = (left - 1.0 if allowed else left, now_ns)
        if len(self._buckets) > 1024:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) * self._period_s


class EnrolmentService(enrol_pb2_grpc.EnrolmentServicer):
    """Checks the token, certifies the key, spends the token, records the certificate, and only then answers."""

    def __init__(
        self, store: InviteStore, authority: Authority, *, days: int = NODE_DAYS, limit: RateLimit | None = None
    ) -> None:
        self._store = store
        self._authority = authority
        self._days = days
        self._limit = limit or RateLimit(MonotonicClock())

    async def Claim(
        self,
        request: enrol_pb2.ClaimRequest,
        context: grpc.aio.ServicerContext[enrol_pb2.ClaimRequest, enrol_pb2.ClaimReply],
    ) -> enrol_pb2.ClaimReply:
        caller = context.peer().rpartition(":")[0]
        wait_s = self._limit.wait_s(caller)
        if wait_s > 0.0:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"too many tries; wait {math.ceil(wait_s)} s and join again"
            )
        if len(request.hosts) > MAX_HOSTS:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"at most {MAX_HOSTS} hosts per node")
        try:
            certificate = await asyncio.to_thread(
                self._enrol, request.node_id, request.token, request.csr_pem, list(request.hosts)
            )
        except SecurityError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        return enrol_pb2.ClaimReply(certificate_pem=certificate, ca_pem=self._authority.pem)

    def _enrol(self, node_id: str, token: str, csr_pem: bytes, hosts: Sequence[str]) -> bytes:
        """Strangers reach no parser but that of hosts; a bad request of an invited node does not cost its token."""
        names = list(dict.fromkeys(map(check_host, hosts)))
        self._store.check(token, node_id, names)
        certificate = issue_node(self._authority, csr_pem, node_id, self._days, names)
        issued = describe(certificate)
        self._store.redeem(token, node_id, names)
        self._store.record(node_id, issued.serial, issued.hosts, issued.expires.timestamp())
        return certificate


async def start_enrolment(listen: str, files: TlsFiles, service: EnrolmentService) -> tuple[grpc.aio.Server, int]:
    """A started server and its port; `listen` is host:port, port 0 for any. Raises SecurityError or PortInUse."""
    server = grpc.aio.server(
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_REQUEST_BYTES)],
        maximum_concurrent_rpcs=MAX_CONCURRENT,
    )
    enrol_pb2_grpc.add_EnrolmentServicer_to_server(service, server)
    try:
        port = server.add_secure_port(listen, server_credentials(files, require_client=False))
    except RuntimeError as error:
        raise PortInUse(f"{listen}: cannot listen for enrolment; is another cloud running on this port?") from error
    await server.start()
    return server, port
