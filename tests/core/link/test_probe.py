"""The rate of a link, found by probing it: over the project's own link emulator, and beside samples that share it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tierline.cli.relay.profile import NAMED, LinkProfile
from tierline.cli.relay.server import Relay
from tierline.core import errors
from tierline.core.bundle import digest_of
from tierline.core.clock import MonotonicClock
from tierline.core.coding import codec_for
from tierline.core.link.ask import Asker
from tierline.core.link.dial import Backoff, Dialler
from tierline.core.link.fleet import Beat, Hello, ProfileStep, ProfileWish, Welcome
from tierline.core.link.link import Link
from tierline.core.link.listen import Listener
from tierline.core.link.messages import Features
from tierline.core.link.probe import answer_probe
from tierline.core.link.session import Session
from tierline.core.link.uplink import Uplink
from tierline.core.types import NodeId, SampleId
from tierline.v1 import fleet_pb2 as pb

WITHIN = 0.15
FILE = np.random.default_rng(2).bytes(300_000)


class Desk:
    """A parent that admits one child, hands it an order and takes its reports."""

    def __init__(self) -> None:
        self.waiting = [b"an order"]
        self.reports: list[tuple[str, bytes]] = []
        self.num_bodies = 0

    def admit(self, hello: Hello) -> Welcome:
        return Welcome("p", 5, b"{}", "", "", b"", "")

    def jobs(self) -> bytes:
        return b""

    def orders(self, child: str) -> list[bytes]:
        waiting, self.waiting = self.waiting, []
        return waiting

    def report(self, child: str, document: bytes) -> None:
        if document == b"bad":
            raise errors.BadFrame("not a report")
        self.reports.append((child, document))

    async def profile(self, wish: ProfileWish) -> AsyncIterator[ProfileStep]:
        yield ProfileStep("a", str(wish.batches))
        raise errors.PlanError("no more")

    def child_up(self, link: Link) -> None: ...

    def child_down(self, link: Link) -> None: ...

    def body(self, *what: Any) -> None:
        self.num_bodies += 1

    def beat(self, beat: Beat) -> None: ...

    def file(self, digest: str) -> bytes:
        if digest == digest_of(FILE):
            return FILE
        if digest == "f1":
            return FILE
        raise errors.BundleError(f"no file {digest}")

    def revoked(self) -> tuple[str, ...]:
        return ()

    def is_serving(self, section: str = "") -> bool | None:
        return True

    def status(self) -> bytes:
        return b"{}"

    def plans(self) -> list[dict[str, Any]]:
        return []

    def change_plan(self, *what: Any) -> dict[str, Any]:
        return {}


@dataclass
class Pair:
    """A child and its parent with an emulated link between them."""

    desk: Desk
    address: str
    relay: Relay
    link: Link
    uplink: Uplink
    orders: list[bytes]


@asynccontextmanager
async def pair(profile: LinkProfile) -> AsyncIterator[Pair]:
    desk, clock, orders, up = Desk(), MonotonicClock(), list[bytes](), asyncio.Event()
    listener = Listener(desk, node="p", epoch=1, address="127.0.0.1:0", clock=clock, credentials=None)
    address = await listener.start()
    relay = Relay(profile, ("127.0.0.1", int(address.rpartition(":")[2])))
    port = await relay.start("127.0.0.1", 0)
    link = Link(Session("a", 2), clock, lambda *what: None)
    hello = Hello("a", "device", 2, (), "", (), "")

    async def prepare(*what: Any) -> None: ...

    dialler = Dialler(
        f"127.0.0.1:{port}", link, hello=lambda: hello, beat=lambda: Beat("a", 2, b"{}", 0.0), prepare=prepare,
        on_change=lambda is_up: up.set() if is_up else None, on_order=lambda order, fetch: None,
        on_revoked=lambda serials: None, on_measure=orders.append, credentials=None, tls=None,
        rng=random.Random(1), backoff=Backoff(0.02, 0.05),
    )  # fmt: skip
    dialling = asyncio.create_task(dialler.run())
    try:
        await asyncio.wait_for(up.wait(), 10)
        yield Pair(desk, address, relay, link, Uplink("a", dialler, clock), orders)
    finally:
        while not dialling.done():  # a cancellation that meets it between two connections may pass it by
            dialling.cancel()
            await asyncio.wait((dialling,), timeout=0.2)
        await relay.close()
        await listener.stop(0)


@pytest.mark.parametrize("name", ["lte", "3g", "wifi"])
def test_a_probe_finds_the_emulated_rate_and_round_trip(name: str) -> None:
    async def run() -> None:
        async with pair(NAMED[name]) as two:
            rates = await two.uplink.probe()
        bps = NAMED[name].mbit * 1e6
        assert rates.up_bps == pytest.approx(bps, rel=WITHIN)
        assert rates.down_bps == pytest.approx(bps, rel=WITHIN)
        assert NAMED[name].rtt_ms <= rates.rtt_ns / 1e6 < NAMED[name].rtt_ms + 25
        assert rates.over_s < 3

    asyncio.run(run())


@pytest.mark.parametrize("link", [NAMED["wifi"], NAMED["3g"], LinkProfile(10.0, 0.15)], ids=lambda link: f"{link.mbit}")
def test_a_sounding_tells_both_for_little(link: LinkProfile) -> None:
    async def run() -> None:
        async with pair(link) as two:
            before = two.relay.stats()["bytes"]["up"]
            rtt_ns, up_bps = await two.uplink.sound(0.0)
            sent = two.relay.stats()["bytes"]["up"] - before
            told = await two.uplink.sound(3e6)
            again = two.relay.stats()["bytes"]["up"] - before - sent
        assert up_bps == pytest.approx(link.mbit * 1e6, rel=2 * WITHIN)
        assert link.rtt_ms <= rtt_ns / 1e6 < link.rtt_ms + 25
        assert sent < 15_000 + link.mbit * 1e6 / 8 * 0.06, "a tenth of a second of the link, or some KiB"
        assert told[1] == 3e6 and again < 2_000, "where samples tell, no train goes up"

    asyncio.run(run())


@pytest.mark.parametrize("name", ["lte", "3g", "wifi"])
def test_samples_that_fill_the_link_save_the_probe_upwards(name: str) -> None:
    feature = codec_for("raw").encode(np.zeros((1, 800), np.float32))

    async def run() -> None:
        async with pair(NAMED[name]) as two:
            for seq in range(3000):
                while seq - two.desk.num_bodies > 40:
                    assert two.link.is_up, "samples were lost"
                    await asyncio.sleep(0.001)
                two.link.post(Features(0, "v", (SampleId(NodeId("a"), 1, seq),), feature))
                if two.link.sent_bps()[0]:
                    break
            rates = await two.uplink.probe()
            sent = two.relay.stats()["bytes"]
        assert rates.up_from == "payloads"
        assert rates.up_bps == pytest.approx(NAMED[name].mbit * 1e6, rel=WITHIN)
        assert sent["up"] < two.desk.num_bodies * 3500 + 20_000

    asyncio.run(run())


def test_files_come_in_pieces_that_leave_the_link_to_samples() -> None:
    async def run() -> None:
        feature = codec_for("raw").encode(np.zeros((1, 300), np.float32))
        async with pair(NAMED["lte"]) as two:
            fetching = asyncio.create_task(two.uplink.fetch(digest_of(FILE)))
            waiting_bytes = []
            while not fetching.done():
                two.link.post(Features(0, "v", (SampleId(NodeId("a"), 1, len(waiting_bytes)),), feature))
                waiting_bytes.append(two.relay.stats()["backlog_bytes"]["down"])
                await asyncio.sleep(0.01)
            assert await fetching == FILE
        # All of it at once would be 300 kB: half a second in which no verdict comes down.
        assert max(waiting_bytes) < 100_000

    asyncio.run(run())


def test_a_wrong_file_is_not_taken_and_a_missing_one_is_named() -> None:
    async def run() -> None:
        async with pair(NAMED["lan"]) as two:
            with pytest.raises(errors.DigestMismatch, match="asked for f1"):
                await two.uplink.fetch("f1")
            with pytest.raises(errors.BundleError, match="no file f2"):
                await two.uplink.fetch("f2")

    asyncio.run(run())


def test_orders_go_down_and_reports_go_up() -> None:
    async def run() -> None:
        async with pair(NAMED["lan"]) as two:
            for _ in range(500):
                if two.orders:
                    break
                await asyncio.sleep(0.01)
            assert two.orders == [b"an order"]
            await two.uplink.report(b"a report")
            assert two.desk.reports == [("a", b"a report")]
            with pytest.raises(errors.BadFrame, match="not a report"):
                await two.uplink.report(b"bad")

    asyncio.run(run())


def test_a_connection_that_is_lost_while_measuring_is_an_error_not_a_cancellation() -> None:
    async def run() -> None:
        async with pair(NAMED["3g"]) as two:
            probing = asyncio.create_task(two.uplink.probe())
            await asyncio.sleep(0.3)
            two.relay.cut()
            with pytest.raises(errors.LinkUnavailable):
                await probing

    asyncio.run(run())


def test_an_operator_hears_progress_and_errors() -> None:
    async def run() -> None:
        async with pair(NAMED["lan"]) as two:
            asker, steps = Asker(two.address, None), []
            async with asker.channel:
                with pytest.raises(errors.PlanError, match="no more"):
                    async for step in asker.profile(ProfileWish(batches=(3,))):
                        steps.append(step)
            assert steps == [ProfileStep("a", "(3,)")]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("chunks", "said"),
    [
        ([pb.ProbeChunk(want_bytes=1 << 30)], "a probe of more than"),
        ([pb.ProbeChunk(data=bytes(1 << 20))] * 32, "a probe of more than"),
    ],
)
def test_a_probe_that_asks_for_too_much_is_refused(chunks: list[Any], said: str) -> None:
    async def given() -> AsyncIterator[Any]:
        for chunk in chunks:
            yield chunk

    async def run() -> None:
        with pytest.raises(errors.BadFrame, match=said):
            async for _ in answer_probe(given(), MonotonicClock(), lambda: 0):
                pass

    asyncio.run(run())
