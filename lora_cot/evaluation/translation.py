"""How good translations are: BLEU and chrF by sacrebleu, and what of METEOR can be had without its data.

BLEU and chrF are those of all sentences together, from 0 to 100, on the texts as they are: mixed case, `13a` tokens. Papers on
Multi30K often lower and tokenise both sides first: their figures are others.

`meteor_stem` is METEOR (Banerjee and Lavie 2005) as NLTK computes it, with the language's own Snowball stemmer and without
synonyms, whose data are not Python packages. It is not comparable with METEOR 1.5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from lora_cot.errors import Problem, RunError
from lora_cot.types import Sample

SNOWBALL = {"de": "german", "fr": "french"}


def sentence_chrf(gold: str, text: str) -> float:
    """chrF2 of one sentence, 0 to 1.

    Raises:
        RunError: sacrebleu is not installed.
    """
    return float(_sacrebleu().sentence_chrf(text, [gold]).score) / 100


def corpus_figures(pairs: Sequence[tuple[str, Sample]]) -> dict[str, float]:
    """`bleu`, `chrf` and `meteor_stem` of translations with their questions, 0 to 100; no text counts as an empty one.

    Raises:
        RunError: sacrebleu is not installed.
    """
    texts = [text for text, _ in pairs]
    golds = [str(sample.last.answer) for _, sample in pairs]
    bleu, chrf = _sacrebleu().corpus_bleu(texts, [golds]), _sacrebleu().corpus_chrf(texts, [golds])
    languages = [str(sample.meta["language"]) for _, sample in pairs]
    meteors = [meteor_stem(*one) for one in zip(golds, texts, languages, strict=True)]
    return {"bleu": bleu.score, "chrf": chrf.score, "meteor_stem": 100 * sum(meteors) / len(meteors)}


def meteor_stem(gold: str, text: str, language: str) -> float:
    """METEOR of one sentence with stems and without synonyms, 0 to 1.

    Args:
        gold: the reference.
        text: what was written.
        language: of both, a key of `SNOWBALL`.
    """
    from nltk.translate.meteor_score import single_meteor_score

    return float(single_meteor_score(_words(gold), _words(text), stemmer=_stemmer(language), wordnet=_NoSynonyms()))


class _NoSynonyms:
    def synsets(self, word: str) -> list[Any]:
        """None of any word."""
        return []


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


@cache
def _stemmer(language: str) -> Any:
    from nltk.stem.snowball import SnowballStemmer

    return SnowballStemmer(SNOWBALL[language])


def check_installed() -> None:
    """See that the packages are there that judge translations.

    Raises:
        RunError: sacrebleu or NLTK is not installed.
    """
    _sacrebleu()
    try:
        import nltk  # noqa: F401
    except ImportError:
        raise _missing("nltk") from None


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError:
        raise _missing("sacrebleu") from None
    return sacrebleu


def _missing(name: str) -> RunError:
    return RunError(Problem(name, "it is not installed", "pip install 'lora_cot[translation]'"))
