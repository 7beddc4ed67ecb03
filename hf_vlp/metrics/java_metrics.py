"""METEOR and SPICE through pycocoevalcap, which runs the authors' Java programs.

Optional: they need `pip install hf_vlp[metrics]` and Java.

* METEOR 1.5 (Denkowski and Lavie 2014): the program and its paraphrase table come with pycocoevalcap (about 100 MB);
  no network.
* SPICE 1.0 (Anderson et al. 2016): **downloads the Stanford parser (several hundred MB) at its first use** into the
  installed package, wants about 8 GB of memory, and was written for Java 8.

Nothing optional is imported until a score is asked for.
"""

import importlib.util
import logging
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hf_vlp.metrics.checks import check_pairs
from hf_vlp.metrics.ptb_tokenizer import ptb_tokenize

logger = logging.getLogger(__name__)

_SPICE_PARSER = "stanford-corenlp-3.6.0.jar"


def _require(metric: str) -> None:
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise ImportError(
            f"{metric} needs the package pycocoevalcap, which is not installed: pip install 'hf_vlp[metrics]' "
            f"(BLEU, ROUGE-L, CIDEr and CIDEr-D work without it)"
        )
    if shutil.which("java") is None:
        raise RuntimeError(
            f"{metric} runs a Java program and no `java` is on the PATH: install a Java runtime "
            f"(apt install default-jre-headless, conda install openjdk) or leave {metric} out"
        )


def _as_dicts(predictions: Sequence[str], references: Sequence[Sequence[str]]):
    return dict(enumerate(map(list, references))), {index: [text] for index, text in enumerate(predictions)}


def meteor_of_tokens(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, np.ndarray]:
    """METEOR of the corpus and of each tokenised prediction (n,)."""
    _require("METEOR")
    from pycocoevalcap.meteor.meteor import Meteor

    # The program reads lines and answers lines, and an empty prediction would shift them: it gets a word that matches
    # nothing, which adds one word to the length of the corpus.
    texts = [text if text.strip() else "\u2205" for text in predictions]
    try:
        corpus, scores = Meteor().compute_score(*_as_dicts(texts, references))
    except (OSError, ValueError) as error:
        raise RuntimeError(f"the METEOR program gave no scores ({error}): check that `java -version` works") from error
    return float(corpus), np.array(scores, dtype=float)


def spice_of_tokens(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, np.ndarray]:
    """SPICE (F) of the corpus and of each tokenised prediction (n,); NaN single values count as 0."""
    _require("SPICE")
    from pycocoevalcap import spice as package

    parser = Path(package.__file__).parent / "lib" / _SPICE_PARSER
    if not parser.exists():
        logger.warning(
            "SPICE: the Stanford parser is not here yet; downloading several hundred MB to %s", parser.parent
        )
    from pycocoevalcap.spice.spice import Spice

    try:
        scorer = Spice()
    except OSError as error:  # URLError is one
        raise RuntimeError(
            f"SPICE downloads the Stanford parser at its first use and could not ({error}): "
            f"run it once with a network, or place {_SPICE_PARSER} and stanford-corenlp-3.6.0-models.jar "
            f"in {parser.parent}"
        ) from error
    try:
        _, details = scorer.compute_score(*_as_dicts(predictions, references))
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(
            f"the SPICE program failed ({error}): it wants Java 8 (newer ones refuse its libraries) and 8 GB of memory"
        ) from error
    scores = np.nan_to_num(np.array([detail["All"]["f"] for detail in details], dtype=float))
    return float(scores.mean()), scores


def _score(of_tokens, predictions, references, tokenize: bool, per_sample: bool) -> float | np.ndarray:
    check_pairs(predictions, references)
    if tokenize:
        predictions, references = ptb_tokenize(predictions), [ptb_tokenize(texts) for texts in references]
    return of_tokens(predictions, references)[int(per_sample)]


def meteor(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: bool = True, per_sample: bool = False
) -> float | np.ndarray:
    """METEOR 1.5 as the COCO tool computes it (English); the corpus value is no mean.

    Needs the extra `metrics` and Java. Raises `ImportError` without pycocoevalcap, `RuntimeError` without Java. Other
    arguments and errors: as for `bleu`.
    """
    return _score(meteor_of_tokens, predictions, references, tokenize, per_sample)


def spice(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: bool = True, per_sample: bool = False
) -> float | np.ndarray:
    """SPICE as the COCO tool computes it (English); **downloads several hundred MB at its first use**.

    Needs the extra `metrics` and Java 8. Raises `ImportError` without pycocoevalcap, `RuntimeError` without Java,
    without the download, or when the program fails. Other arguments and errors: as for `bleu`.
    """
    return _score(spice_of_tokens, predictions, references, tokenize, per_sample)
