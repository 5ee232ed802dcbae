"""The table of model families is what the trials say today."""

import model_table
from published_configs import ENGINE_IN_CI, ENGINE_OTHERS, PUBLISHED


def test_the_documentation_has_the_table() -> None:
    text = model_table.DOCUMENT.read_text()
    assert model_table.BEGIN in text and model_table.END in text
    assert model_table.document(text) == text, "python tests/helpers/model_table.py"


def test_it_names_models_that_there_are() -> None:
    assert {*ENGINE_IN_CI, *ENGINE_OTHERS, *model_table.REHEARSED} <= set(PUBLISHED)
