"""How much of their wording texts share: distinct-n and self-BLEU."""

import re
from collections.abc import Sequence

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.diversity.rarefaction import hit_probability

_TOKEN = re.compile(r"\w+|[^\w\s]")
MISSING = "{} isn't installed: pip install -e .[diversity] has what the measures need"


def distinct_n(texts: Sequence[str], n: int, draws: int) -> float:
    """distinct-n (Li et al., arXiv 1510.03055): different n-grams of words and signs over all.

    Of ``draws`` of the texts: the expected number of the ones over that of the others, exactly. It falls as texts get
    longer, so it compares systems only if their lengths are alike. nan if no text has n of them.
    """
    rows = [_ngrams(_TOKEN.findall(text), n) for text in texts]
    total = draws * sum(map(len, rows)) / len(rows)
    holders: dict[tuple[str, ...], int] = {}
    for row in rows:
        for gram in set(row):
            holders[gram] = holders.get(gram, 0) + 1
    chance = [hit_probability(count, len(texts), draws) for count in range(len(texts) + 1)]
    return sum(chance[count] for count in holders.values()) / total if total else float("nan")


def self_bleu(texts: Sequence[str], pairs: Sequence[tuple[int, int]]) -> float:
    """Mean BLEU-4 of a text against another one over ``pairs``, both ways; in [0, 1], low where texts differ.

    Self-BLEU (Zhu et al., arXiv 1802.01886) with one reference at a time (pairwise BLEU, Shen et al.,
    arXiv 1902.07816): against all others at once it would rise with their number. sacrebleu's sentence BLEU.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise UserError(MISSING.format("sacrebleu")) from None
    bleu = BLEU(effective_order=True)
    scores = [bleu.sentence_score(texts[a], [texts[b]]).score / 100 for i, j in pairs for a, b in ((i, j), (j, i))]
    return sum(scores) / len(scores)


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
