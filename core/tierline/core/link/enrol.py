"""The node's half of enrolment: spend an invitation, get a certificate."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import grpc.aio

from tierline.core.errors import AdmissionRefused, LinkTimeout, PeerRejected, SecurityError, TierlineError
from tierline.core.invite import Invitation
from tierline.core.link.tls_failure import explain_failure
from tierline.v1 import enrol_pb2, enrol_pb2_grpc


async def claim(
    invitation: Invitation, csr_pem: bytes, hosts: Sequence[str] = (), *, timeout_s: float = 10.0
) -> tuple[bytes, bytes]:
    """The node's certificate and the authority's, both PEM. The server must prove itself by the invitation's authority.

    Raises SecurityError (wrong authority or host name, token refused), LinkUnavailable, LinkTimeout,
    AdmissionRefused (too many tries) or PeerRejected.
    """
    request = enrol_pb2.ClaimRequest(
        node_id=invitation.node_id, token=invitation.token, csr_pem=csr_pem, hosts=list(hosts)
    )
    credentials = grpc.ssl_channel_credentials(root_certificates=invitation.ca_pem)
    async with grpc.aio.secure_channel(invitation.address, credentials) as channel:
        try:
            reply = await enrol_pb2_grpc.EnrolmentStub(channel).Claim(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise await _explained(invitation, error) from error
    if reply.ca_pem != invitation.ca_pem:
        raise SecurityError(
            f"{invitation.address}: answered with another authority than invited; ask for a new invitation"
        )
    return reply.certificate_pem, reply.ca_pem


async def _explained(invitation: Invitation, error: grpc.aio.AioRpcError) -> TierlineError:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE:
        return await explain_failure(invitation.address, invitation.ca_pem, None)
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return SecurityError(f"{invitation.address}: {details}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return AdmissionRefused(f"{invitation.address}: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return LinkTimeout(f"{invitation.address}: no answer in time; is this the enrolment port?")
    return PeerRejected(f"{invitation.address}: {details or code.name}")
