"""Seconds to score captions, ours beside pycocoevalcap, measured in the same run.

    python benchmarks/metrics.py                                    # 5,000 made-up captions x 5 references
    python benchmarks/metrics.py --captions val2014.parquet         # a column `captions` of lists, five or more each

With real captions the first of each image is scored against the next ones. The column of pycocoevalcap appears when it
is installed (`pip install hf_vlp[metrics]`); its tokeniser also needs Java. The largest difference between the scores
is printed too.
"""

import argparse
import importlib.util
import platform
import random
import shutil
import time
from collections.abc import Callable
from typing import Any

from hf_vlp.metrics import CiderDScorer, DocumentFrequencies, bleu, cider_d, ptb_tokenize, rouge_l
from hf_vlp.metrics.ptb_tokenizer import clear_cache

WORDS = (
    "a the an on in of with and is are standing sitting man woman dog cat train street table red white large small "
    "young group people holding riding next to near top field water plate food tennis ball bus clock sign building"
).split()


def made_up_captions(images: int, per_image: int) -> list[list[str]]:
    """Captions of 8 to 14 words with Zipf-like frequencies; the captions of an image share most of their words."""
    generator = random.Random(0)
    weights = [1 / (rank + 1) for rank in range(len(WORDS))]
    captions = []
    for _ in range(images):
        base = generator.choices(WORDS, weights, k=generator.randint(8, 14))
        captions.append(
            [
                " ".join(generator.choices(WORDS, weights)[0] if generator.random() < 0.4 else word for word in base)
                for _ in range(per_image)
            ]
        )
    return captions


def read_captions(path: str, column: str, images: int, per_image: int) -> list[list[str]]:
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=path, split="train", columns=[column])
    captions = [list(texts[:per_image]) for texts in rows[column] if len(texts) > 1]
    return captions[:images]


def timed(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """The fastest of several runs, in seconds, and the result."""
    best, result = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    return best, result


def reference_functions(predictions: list[str], references: list[list[str]]) -> dict[str, Callable[[], Any]]:
    if importlib.util.find_spec("pycocoevalcap") is None:
        return {}
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokens = ptb_tokenize(predictions), [ptb_tokenize(texts) for texts in references]
    truth = dict(enumerate(tokens[1]))
    results = {index: [text] for index, text in enumerate(tokens[0])}
    raw = [[prediction, *texts] for prediction, texts in zip(predictions, references)]
    raw_captions = {index: [{"caption": text} for text in texts] for index, texts in enumerate(raw)}
    functions = {
        "bleu": lambda: Bleu(4).compute_score(truth, results, verbose=0)[0][3],
        "rouge_l": lambda: float(Rouge().compute_score(truth, results)[0]),
        "cider_d": lambda: float(Cider().compute_score(truth, results)[0]),
    }
    if shutil.which("java"):
        functions["tokenise"] = lambda: list(PTBTokenizer().tokenize(raw_captions).values())
    return functions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", help="parquet file with a list of captions per image; made-up captions without")
    parser.add_argument("--column", default="captions", help="its column of captions")
    parser.add_argument("--images", type=int, default=5000, help="number of predictions")
    parser.add_argument("--references", type=int, default=5, help="references per prediction, at most")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest run counts")
    arguments = parser.parse_args()

    per_image = arguments.references + 1
    if arguments.captions:
        captions = read_captions(arguments.captions, arguments.column, arguments.images, per_image)
    else:
        captions = made_up_captions(arguments.images, per_image)
    predictions, references = [texts[0] for texts in captions], [texts[1:] for texts in captions]
    tokens = ptb_tokenize(predictions), [ptb_tokenize(texts) for texts in references]

    def tokenise_from_nothing() -> list[list[str]]:
        clear_cache()
        return [ptb_tokenize(texts) for texts in captions]

    scorer = CiderDScorer(DocumentFrequencies.build(tokens[1], tokenize=False))
    # one step of self-critical training: 64 images, five samples each, references seen before (the greedy captions)
    step = [prediction for prediction in predictions[:64] for _ in range(5)]
    step_references = [texts for texts in references[:64] for _ in range(5)]
    ours: dict[str, Callable[[], Any]] = {
        "tokenise": tokenise_from_nothing,
        "bleu": lambda: bleu(*tokens, tokenize=False)["bleu_4"],
        "rouge_l": lambda: rouge_l(*tokens, tokenize=False),
        "cider_d": lambda: cider_d(*tokens, tokenize=False),
        f"reward of {len(step)} samples": lambda: scorer.score(step, step_references),
    }
    theirs = reference_functions(predictions, references)
    source = arguments.captions or "made-up captions"
    print(f"{len(captions)} predictions, {sum(map(len, references))} references, {source}")
    print(f"Python {platform.python_version()}, {platform.machine()}; fastest of {arguments.repeats}, seconds\n")
    print(f"{'':24}{'hf_vlp':>10}{'pycocoevalcap':>15}{'ratio':>8}  difference")
    for name, function in ours.items():
        seconds, value = timed(function, arguments.repeats)
        line = f"{name:24}{seconds:10.3f}"
        if name in theirs:
            other_seconds, other_value = timed(theirs[name], arguments.repeats)
            if name == "tokenise":
                pairs = [pair for mine, other in zip(value, other_value) for pair in zip(mine, other)]
                difference = f"{sum(mine != other for mine, other in pairs)} of {len(pairs)} captions"
            else:
                difference = f"{abs(value - other_value):.1e}"
            line += f"{other_seconds:15.3f}{other_seconds / seconds:8.1f}  {difference}"
        print(line)
    if not theirs:
        print("\npycocoevalcap is not installed: no ratio (pip install 'hf_vlp[metrics]')")


if __name__ == "__main__":
    main()
