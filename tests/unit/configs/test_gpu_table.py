"""Every option of the shipped GPU configurations has something that exercises it, and the documentation says what."""

from itertools import chain

import gpu_options
import pytest


def test_no_option_is_without_an_entry() -> None:
    without = [option for option in gpu_options.options() if option not in gpu_options.ENTRIES]
    assert without == [], "write a test with the option on, and name it in tests/helpers/gpu_options.py"


@pytest.mark.parametrize("place", sorted(set(chain.from_iterable(gpu_options.ENTRIES.values()))))
def test_what_is_named_exists(place: str) -> None:
    if place.startswith(gpu_options.CUDA):
        assert len(place) > len(gpu_options.CUDA), "what of it"
    else:
        assert gpu_options.exists(place)


def test_what_does_not_exist_is_noticed() -> None:
    assert not gpu_options.exists("engine/test_gpu_options.py::test_nothing")
    assert not gpu_options.exists("engine/test_nothing.py")


def test_the_documentation_has_the_table() -> None:
    text = gpu_options.DOCUMENT.read_text()
    assert gpu_options.BEGIN in text and gpu_options.END in text
    assert gpu_options.document(text) == text, "python tests/helpers/gpu_options.py"
