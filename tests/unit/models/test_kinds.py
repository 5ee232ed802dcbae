"""Models that aren't trained here are told by their config.json, those that nobody here wrote included."""

import pytest
from published_configs import PUBLISHED, REFUSED
from transformers import AutoConfig
from transformers.models.auto import modeling_auto
from transformers.utils import logging

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.models.kinds import refuse_untrainable


@pytest.mark.parametrize("name", PUBLISHED)
def test_causal_language_models_pass(name: str) -> None:
    refuse_untrainable(PUBLISHED[name], name)


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_in_one_line_that_says_what_was_seen(name: str) -> None:
    architecture, seen = REFUSED[name]
    with pytest.raises(UserError) as refused:
        refuse_untrainable(architecture, name)
    message = str(refused.value)
    assert message.startswith(name) and seen in message and "\n" not in message
    assert "give " in message, "a way out"


def test_on_the_families_of_transformers() -> None:
    """By their default configurations. Those that show no tower there (Fuyu, Gemma 4) can't be told by them."""
    logging.set_verbosity_error()
    images = set(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - {"vision-encoder-decoder"}
    pairs = set(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES) - {"encoder-decoder"}
    texts = set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - images - pairs
    assert refused(texts - {"musicgen", "musicgen_melody"}) == {"moshi", "phi4_multimodal", "whisper"}
    assert pairs - refused(pairs) <= {"prophetnet"}
    assert images - refused(images) <= {"evolla", "fuyu", "gemma4", "gemma4_unified", "mistral4"}


def refused(families: set[str]) -> set[str]:
    found = set()
    for family in families:
        try:
            refuse_untrainable(AutoConfig.for_model(family).to_dict(), family)
        except UserError:
            found.add(family)
    return found
