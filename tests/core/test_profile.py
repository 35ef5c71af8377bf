"""Profiles: the document, and times of pieces that were not measured themselves."""

from __future__ import annotations

import msgspec
import pytest

from tierline.core.errors import PlanError
from tierline.core.profile import (
    SCHEMA,
    CodecTime,
    HeadTime,
    LinkTime,
    NodeProfile,
    Profile,
    SectionTime,
    parse_profile,
)
from tierline.core.types import Tier

ENGINE = "onnxruntime"


def section(first: str, last: str, ns: int, batch: int = 1, precision: str = "float32") -> SectionTime:
    return SectionTime(first, last, ENGINE, precision, batch, ns, ns // 10, 20)


def node(*sections: SectionTime) -> NodeProfile:
    return NodeProfile("orin", Tier.EDGE, "2026-01-01T00:00:00Z", {"hardware": {"cores": 6}}, sections)


def whole() -> Profile:
    own = msgspec.structs.replace(
        node(section("input", "output", 900)),
        heads=(HeadTime("early", ENGINE, "float32", 1, 40, 4, 20),),
        codecs=(CodecTime("pool1", "affine:4", 300, 200, 61.5, 70, 32),),
        skipped={"engine tensorrt": "not installed"},
    )
    link = LinkTime("orin", 50.2, 5.8e6, 5.7e6, 0.8, "payloads")
    return Profile(SCHEMA, "ab" * 32, {"orin": own}, {"orin": link}, {"far": "not connected"})


def test_a_profile_survives_its_document_and_has_one_digest() -> None:
    made = whole()
    again = parse_profile(made.document(), "here")
    assert again == made
    assert again.digest() == made.digest()
    changed = msgspec.structs.replace(made, bundle="cd" * 32)
    assert changed.digest() != made.digest()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"{", "here: not a Profile"),
        (b"[]", "here: not a Profile"),
        (whole().document().replace(b'"schema":1', b'"schema":7'), "schema 7, this version reads schema 1"),
        (whole().document().replace(b'"rtt_ms"', b'"rtt_s"'), "here: not a Profile"),
    ],
)
def test_what_is_no_profile_is_refused_by_name(raw: bytes, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        parse_profile(raw, "here")


def test_a_measured_piece_is_taken_as_it_is() -> None:
    # The sum of the parts would be 50: what was measured itself counts.
    own = node(section("input", "a", 20), section("a", "b", 30), section("input", "b", 44))
    assert own.piece("input", "b", ENGINE) == (44, 1)


def test_other_pieces_are_made_of_the_fewest_measured_ones() -> None:
    own = node(section("input", "a", 20), section("input", "b", 50), section("b", "output", 7))
    assert own.piece("a", "b", ENGINE) == (30, 2)
    assert own.piece("input", "output", ENGINE) == (57, 2)
    assert own.piece("a", "output", ENGINE) == (37, 3)
    assert own.piece("a", "a", ENGINE) == (0, 0)


def test_a_difference_is_never_below_zero() -> None:
    assert node(section("input", "a", 20), section("input", "b", 19)).piece("a", "b", ENGINE) == (0, 2)


def test_times_of_another_engine_batch_or_precision_do_not_answer() -> None:
    own = node(section("input", "a", 20), section("a", "b", 30, batch=8), section("a", "c", 5, precision="float16"))
    assert own.piece("input", "b", ENGINE) is None
    assert own.piece("a", "b", ENGINE, batch=8) == (30, 1)
    assert own.piece("a", "c", ENGINE, precision="float16") == (5, 1)
    assert own.piece("input", "a", "torch") is None
    assert own.piece("input", "unknown", ENGINE) is None


def test_heads_and_codecs_are_found_by_name() -> None:
    own = whole().nodes["orin"]
    head, codec = own.head("early", ENGINE), own.codec("pool1", "affine:4")
    assert head is not None
    assert head.p50_ns == 40
    assert own.head("early", ENGINE, batch=8) is None
    assert codec is not None
    assert codec.num_bytes == 61.5
    assert own.codec("pool1", "raw") is None
