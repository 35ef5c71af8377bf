"""Laws of every compressor in the catalogue, at its defaults and at options that change what it promises."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from tierline.core import catalog
from tierline.core.errors import BadFrame, CodecError, ConfigError, CorruptPayload, ShapeMismatch, UnknownCodec
from tierline.core.rng import Key
from tierline.core.types import Payload
from tierline.learning.compressor import Compressed, Compressor, Factors
from tierline.learning.errors import RuleError
from tierline.learning.packing import packed, unpacked

NAMES = catalog.names("compress")


@dataclass(frozen=True)
class Case:
    """A compressor with options, and how many bits per value it may spend on 4096 normal values, beside `fixed`."""

    name: str
    bits: float
    fixed: int = 32
    options: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{value}" for value in self.options.values())])

    def make(self) -> Compressor:
        made: Compressor = catalog.make("compress", self.name, **self.options)
        return made


CASES = (
    Case("affine", 8, fixed=96),
    Case("affine", 3, fixed=96, options={"bits": 3, "rounding": "stochastic"}),
    Case("compressive_sampling", 1.5),
    Case("compressive_sampling", 0.25 * math.log2(3) + 0.3, options={"share": 0.25, "steps": 1, "decoder": "mmse"}),
    Case("dgc", 0.002 * (32 + 12)),
    Case("dgc", 0.25 * 40, options={"share": 0.01, "warmup_stages": 3, "clip": 1.0, "num_workers": 4}),
    Case("dithered", math.log2(3) + 0.02),
    Case("dithered", 3.2, options={"steps": 3, "block": 256}),
    Case("error_feedback", 0.01 * (32 + 12)),
    Case("error_feedback", 1, options={"inner": "sign", "beta": 0.5}),
    Case("error_feedback", 1.5, options={"inner": "compressive_sampling", "beta": 0.3}),
    Case("error_feedback", 0.01 * 44, options={"inner": "dgc", "options": {"share": 0.01}}),
    Case("indirect", 1.65),
    Case("indirect", 1.65, options={"form": "mvu", "levels": 2, "num_passes": 2}),
    Case("indirect", 2.55, options={"form": "naive", "levels": 4}),
    Case("indirect", 2.55, options={"form": "dithered", "levels": 3}),
    Case("indirect", 2.55, options={"form": "dithered", "levels": 5, "model_x": "u", "model_d": "su"}),
    Case("nested_dithered", math.log2(3) + 0.02),
    Case("nested_dithered", math.log2(5) + 0.02, options={"fine": 10, "coarse": 2}),
    Case("one_bit", 1, fixed=8 * 64 + 32),
    Case("qsgd", math.log2(15) + 0.1),
    Case("qsgd", math.log2(3) + 0.02, options={"steps": 1, "norm": "max"}),
    Case("qsgd", math.log2(15) + 0.1, options={"steps": 7, "scaled": True}),
    Case("randomk", 0.01 * 32),
    Case("randomk", 0.2 * 32, options={"share": 0.2, "unbiased": True}),
    Case("sign", 1),
    Case("terngrad", math.log2(3) + 0.02),
    Case("terngrad", math.log2(3) + 0.02, options={"clip": 2.5}),
    Case("topk", 0.01 * (32 + 12)),
    Case("topk", 0.1 * (8 + 6), options={"share": 0.1, "values": "affine:8"}),
)
ARRAYS = tuple(case for case in CASES if not case.make().promise.takes_factors_only)
FACTORS = tuple(case for case in CASES if case.make().promise.takes_factors_only)
SHAPES = [(), (1,), (7,), (300,), (3, 5), (2, 3, 3, 2), (0,), (0, 3), (3, 0)]
over_cases = pytest.mark.parametrize("case", CASES, ids=str)
over_arrays = pytest.mark.parametrize("case", ARRAYS, ids=str)


def key(i: int = 0, tensor: str = "w") -> Key:
    return Key("run", i, "a", "b", tensor)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def an_update(case: Case, *, size: int = 64, seed: int = 0) -> np.ndarray | Factors:
    """For most size x size normal values; for the others the factors of such a gradient, one after a ReLU."""
    if case in FACTORS:
        return Factors(np.maximum(normal(size // 4, size, seed=seed), 0), normal(size // 4, size, seed=seed + 1))
    return normal(size, size, seed=seed)


def as_array(update: np.ndarray | Factors) -> np.ndarray:
    return update.product() if isinstance(update, Factors) else update


def there(made: Compressor, k: Key, update: np.ndarray | Factors) -> np.ndarray:
    """What the receiver makes of an update; it is told the update where it needs side information."""
    side = as_array(update) if made.promise.needs_side else None
    return made.expand(k, made.compress(k, update), side)


def same(a: Compressed, b: Compressed) -> bool:
    return bool(np.array_equal(packed(a), packed(b)))


def squared(x: np.ndarray) -> float:
    return float((x.astype(np.float64) ** 2).sum())


def test_every_compressor_has_a_case() -> None:
    assert {case.name for case in CASES} == set(NAMES)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@over_arrays
def test_shape_and_dtype_are_kept(case: Case, shape: tuple[int, ...]) -> None:
    made, x = case.make(), normal(*shape)
    x = np.asarray(x, np.float32)
    before = x.copy()
    y = there(made, key(), x)
    assert isinstance(y, np.ndarray) and y.shape == shape and y.dtype == np.float32 and np.isfinite(y).all()
    assert np.array_equal(x, before)
    assert case.make().compress(key(), x).num_bytes <= made.max_bytes(x)


@pytest.mark.parametrize("shape", [(16, 64, 64), (1, 3, 2), (0, 3, 2), (5, 0, 2), (5, 1, 1)], ids=str)
@pytest.mark.parametrize("case", FACTORS, ids=str)
def test_factors_become_a_gradient(case: Case, shape: tuple[int, int, int]) -> None:
    b, i, o = shape
    factors, made = Factors(normal(b, i), normal(b, o)), case.make()
    message = made.compress(key(), factors)
    y = made.expand(key(), message)
    assert y.shape == (i, o) and y.dtype == np.float32 and np.isfinite(y).all()
    assert message.num_bytes <= made.max_bytes(factors)
    with pytest.raises(ShapeMismatch, match="'w' is an array"):
        made.compress(key(), factors.product())


@over_arrays
def test_factors_are_multiplied_where_an_array_is_needed(case: Case) -> None:
    factors = Factors(normal(5, 8), normal(5, 9))
    assert same(case.make().compress(key(), factors), case.make().compress(key(), factors.product()))


@over_cases
def test_the_key_decides_every_bit(case: Case) -> None:
    update = an_update(case)
    message = case.make().compress(key(), update)
    assert same(message, case.make().compress(key(), update))
    y, again = there(case.make(), key(), update), there(case.make(), key(), update)
    assert y.tobytes() == again.tobytes()
    assert message.stamp != case.make().compress(key(1), update).stamp


@over_cases
def test_a_message_made_under_another_key_is_refused(case: Case) -> None:
    update, made = an_update(case), case.make()
    side = as_array(update)
    message = made.compress(key(), update)
    for other in (
        Key("another", 0, "a", "b", "w"),
        Key("run", 1, "a", "b", "w"),
        Key("run", 0, "b", "a", "w"),
        Key("run", 0, "a", "b", "v"),
    ):
        with pytest.raises(BadFrame, match="not made under the key"):
            made.expand(other, message, side)


@over_cases
def test_the_error_is_as_stated(case: Case) -> None:
    update = an_update(case, size=16)
    x, bound = as_array(update), case.make().expected_error(update)
    promise = case.make().promise
    if promise.contracts:
        assert bound <= squared(x)
    num = 120 if promise.unbiased or not promise.contracts else 20
    total, error = np.zeros(x.shape), 0.0
    for i in range(num):
        y = there(case.make(), key(i), update)
        total += y
        error += squared(y - x)
    assert error / num <= bound * 1.05
    if promise.unbiased:
        # The mean of num errors has an expected square of error / num; a bias would not shrink.
        assert squared(total / num - x) < 1.3 * error / num / num
    if promise.contracts:
        assert error / num < squared(x)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e30, -1e30, 1e-30], ids=str)
@over_arrays
def test_constant_and_huge_updates(case: Case, value: float) -> None:
    x = np.full((40,), value, np.float32)
    y = there(case.make(), key(), x)
    assert np.isfinite(y).all()
    if value == 0:
        assert not y.any()
    # Far from the end of float32, size changes nothing but size.
    unit = there(case.make(), key(), np.full((40,), np.sign(value), np.float32))
    assert np.allclose(y, unit * abs(value), rtol=1e-4, atol=1e-5 * abs(value)) or case.options.get("clip")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38], ids=str)
@over_cases
def test_what_is_not_finite_is_refused_by_name(case: Case, value: float) -> None:
    made = case.make()
    if case in FACTORS:
        x = normal(4, 6)
        x[1, 2] = value
        bad: np.ndarray | Factors = Factors(x, normal(4, 3))
    else:
        bad = normal(4, 6)
        bad[1, 2] = value
    before = made.state()
    with pytest.raises(CodecError, match=r"conv1.*not finite"):
        made.compress(key(tensor="conv1"), bad)
    assert made.state().keys() == before.keys()


@over_arrays
def test_other_dtypes_are_refused_by_name(case: Case) -> None:
    for bad in (np.zeros(3), np.zeros(3, np.int32), [1.0, 2.0]):
        with pytest.raises(ShapeMismatch, match="'w' is"):
            case.make().compress(key(), bad)  # type: ignore[arg-type]


@over_cases
def test_bytes_are_what_is_stated(case: Case) -> None:
    made, update = case.make(), an_update(case)
    message = made.compress(key(), update)
    num_values = update.x_BI.size + update.d_BO.size if isinstance(update, Factors) else update.size
    assert message.num_bytes <= made.max_bytes(update)
    assert message.num_bytes <= case.bits * num_values / 8 + case.fixed
    coded = sum(len(payload.data) for payload in message.payloads.values())
    assert message.num_bytes == 4 + 8 * len(message.scalars) + coded
    assert len(packed(message)) < message.num_bytes + 140


@over_cases
def test_a_message_travels_as_bytes(case: Case) -> None:
    made, update = case.make(), an_update(case)
    message = made.compress(key(), update)
    side = as_array(update)
    flat = packed(message)
    arrived = unpacked(flat, message.shape)
    assert np.array_equal(made.expand(key(), arrived, side), made.expand(key(), message, side))
    for bad in (flat[:-1], np.append(flat, np.uint8(0)), flat[:0], flat.astype(np.float32), None, 3.0):
        with pytest.raises(BadFrame, match="compressed message"):
            unpacked(bad, message.shape)


@over_cases
def test_damage_is_an_error_of_its_own_or_a_wrong_value_but_nothing_else(case: Case) -> None:
    made, update = case.make(), an_update(case)
    message = made.compress(key(), update)
    flat, rng = packed(message), np.random.default_rng(5)
    for i in range(30):
        bad = flat.copy()
        bad[-1 - i if i < 15 else rng.integers(len(bad))] ^= np.uint8(1 << rng.integers(8))
        try:
            y = made.expand(key(), unpacked(bad, message.shape), as_array(update))
        except (BadFrame, CodecError):
            continue
        assert y.shape == message.shape and y.dtype == np.float32 and np.isfinite(y).all()


@over_cases
def test_messages_that_do_not_fit_are_refused(case: Case) -> None:
    made, update = case.make(), an_update(case)
    message, side = made.compress(key(), update), as_array(update)
    with pytest.raises(BadFrame, match="same compressor"):
        made.expand(key(), dataclasses.replace(message, payloads={"other": Payload("raw", "float32", (1,), b"")}), side)
    name, payload = next(iter(message.payloads.items()))
    short = dataclasses.replace(payload, data=payload.data[:-1])
    with pytest.raises(CorruptPayload):
        made.expand(key(), dataclasses.replace(message, payloads={**message.payloads, name: short}), side)
    for scalar in message.scalars:
        with pytest.raises(BadFrame, match=scalar):
            made.expand(key(), dataclasses.replace(message, scalars={**message.scalars, scalar: math.nan}), side)


@over_cases
def test_what_is_remembered_survives_save_and_load(case: Case) -> None:
    keys = [dataclasses.replace(key(i), tensor=tensor) for i in range(3) for tensor in ("w", "v")]
    whole, first, second = case.make(), case.make(), case.make()
    for i, k in enumerate(keys):
        whole.compress(k, an_update(case, seed=i))
        first.compress(k, an_update(case, seed=i))
    state = first.state()
    assert bool(state) == whole.promise.remembers
    saved = {name: np.copy(value) for name, value in state.items()}
    second.load(state)
    for made in (first, second):  # neither may write on what was saved
        expected = whole if made is first else case.make()
        if made is second:
            expected.load(saved)
        for i in range(2):
            update = an_update(case, seed=50 + i)
            assert same(made.compress(key(9 + i), update), expected.compress(key(9 + i), update))
    assert all(np.array_equal(state[name], saved[name]) for name in saved)


@over_cases
def test_memories_of_tensors_and_receivers_are_apart(case: Case) -> None:
    if not case.make().promise.remembers:
        return
    made, update = case.make(), an_update(case)
    made.compress(key(), an_update(case, seed=7))
    for other in (key(tensor="v"), dataclasses.replace(key(), receiver="c")):
        assert same(made.compress(other, update), case.make().compress(other, update))
    assert not same(made.compress(key(), update), case.make().compress(key(), update))
    with pytest.raises(ShapeMismatch, match="was float32"):
        made.compress(key(), normal(3))


CONSERVING: dict[str, Callable[[], Compressor]] = {
    **{str(case): case.make for case in CASES if case.name == "error_feedback" and case.options.get("inner") != "dgc"},
    "one_bit": lambda: catalog.make("compress", "error_feedback", inner="one_bit"),
    "terngrad": lambda: catalog.make("compress", "error_feedback", inner="terngrad", beta=0.2),
    "dgc": lambda: catalog.make("compress", "dgc", share=0.05, momentum=0.0),
}


@pytest.mark.parametrize("name", CONSERVING)
def test_what_was_sent_and_what_is_remembered_are_all_updates(name: str) -> None:
    made = CONSERVING[name]()
    sent, given = np.zeros((8, 9)), np.zeros((8, 9))
    for i in range(40):
        x = normal(8, 9, seed=i)
        given += x
        sent += made.expand(key(i), made.compress(key(i), x))
        state = {slot: value for slot, value in made.state().items() if not slot.startswith("u:")}
        (memory,) = state.values()
        assert np.abs(sent + memory - given).max() < 2e-5 * max(1.0, np.abs(memory).max())


def test_side_information_is_asked_for() -> None:
    made, x = catalog.make("compress", "nested_dithered"), normal(5)
    message = made.compress(key(), x)
    with pytest.raises(RuleError, match="needs side="):
        made.expand(key(), message)
    with pytest.raises(ShapeMismatch, match="side is"):
        made.expand(key(), message, normal(6))


BAD_OPTIONS = [
    ("compressive_sampling", {"block": 96}),
    ("compressive_sampling", {"share": 0.0}),
    ("compressive_sampling", {"steps": 128}),
    ("compressive_sampling", {"decoder": "best"}),
    ("dgc", {"share": 2.0}),
    ("dgc", {"num_workers": 0}),
    ("dithered", {"steps": 0}),
    ("error_feedback", {"beta": 0.0}),
    ("error_feedback", {"inner": "indirect"}),
    ("error_feedback", {"inner": "nested_dithered"}),
    ("error_feedback", {"inner": "topq"}),
    ("error_feedback", {"options": {"shar": 1}}),
    ("indirect", {"form": "best"}),
    ("indirect", {"model_x": "n"}),
    ("indirect", {"form": "dithered", "levels": 2}),
    ("nested_dithered", {"fine": 4, "coarse": 1}),
    ("nested_dithered", {"fine": 5, "coarse": 2}),
    ("nested_dithered", {"coarse": 0}),
    ("nested_dithered", {"gain": 0.0}),
    ("qsgd", {"steps": 0}),
    ("qsgd", {"norm": "l1"}),
    ("qsgd", {"norm": "max", "scaled": True}),
    ("randomk", {"share": -1.0}),
    ("terngrad", {"clip": -1.0}),
    ("topk", {"share": 0.0}),
    ("topk", {"values": "nothing"}),
]


@pytest.mark.parametrize(("name", "options"), BAD_OPTIONS, ids=str)
def test_options_out_of_range_are_named(name: str, options: dict[str, object]) -> None:
    with pytest.raises((ConfigError, UnknownCodec), match=rf"{name}|compress|codec"):
        catalog.make("compress", name, **options)
