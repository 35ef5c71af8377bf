"""Random words of the compiled kernels and of their oracle."""

from __future__ import annotations

import numpy as np
import pytest

from tierline.kernels.library import address, bind
from tierline.kernels.numpy import philox


@pytest.mark.parametrize(("key", "upper"), [(0, 0), (2**64 - 1, 2**63 + 5), (0xA4093822299F31D0, 0x0370734413198A2E)])
@pytest.mark.parametrize("num_words", [0, 1, 4, 1003])
def test_compiled_words_are_those_of_the_oracle(num_words: int, key: int, upper: int) -> None:
    lib = bind(tl_philox_words="pnuu")
    if lib is None:
        pytest.skip("no C++ compiler")
    word = np.zeros(num_words + 1, np.uint32)
    lib.tl_philox_words(address(word), num_words, key, upper)
    assert np.array_equal(word[:-1], philox.words(num_words, key, upper))
    assert word[-1] == 0


def test_a_word_depends_on_its_counter_alone() -> None:
    assert np.array_equal(philox.words(100, 7)[:9], philox.words(9, 7))
    counter = np.array([[5, 0, 3, 0]], np.uint32)
    assert np.array_equal(philox.words(24, 7, 3)[20:], philox.philox4x32(counter, (7, 0))[0])
