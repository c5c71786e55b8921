"""Is `imagebeam train` without flags as good as scaled logistic regression with its penalty chosen by cross-validation?

    python -m benchmarks.classifiers                        # the 64 pixels of scikit-learn's digits
    python -m benchmarks.classifiers OUT --column embedding # the embeddings of a finished run with labels

Each split is the job's own, with another seed. The baseline is scikit-learn's `StandardScaler` and
`LogisticRegressionCV` on the rows that do not test, so both see the same rows and are measured on the same ones.

A split's difference is a few rows that only one of the two has right. `p` is that of the exact McNemar test: how often
chance alone would share such rows out as unevenly.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import publish

CHANCE = 0.05


def write_digits(folder: Path) -> str:
    """scikit-learn's digits, 64 pixels each, as a finished run; its folder."""
    from sklearn.datasets import load_digits

    from tests.support.embedding_sets import write_output

    vectors, targets = load_digits(return_X_y=True)
    images = [row.tobytes().hex() for row in vectors]
    return write_output(folder, vectors.astype(np.float32), targets.astype(str), images=images)


def read_rows(folder: str, column: str) -> dict[tuple[str, str], tuple[str, np.ndarray]]:
    """(uri, key) -> label and vector, read by pyarrow alone."""
    import pyarrow.dataset as ds

    table = ds.dataset(f"{folder}/embeddings").to_table(columns=["uri", "key", "label", column])
    names = zip(table["uri"].to_pylist(), table["key"].to_pylist(), strict=True)
    return dict(zip(names, zip(table["label"].to_pylist(), table[column].to_numpy(), strict=True), strict=True))


def compare(folder: str, column: str, rows: dict[tuple[str, str], tuple[str, np.ndarray]], seed: int) -> dict[str, Any]:
    """Train by the job's default and by scikit-learn on one split."""
    import pyarrow.parquet as pq
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from pipelines.options.training import ClassifierOptions, EmbeddingOptions, RowOptions
    from pipelines.train import TrainOptions, run

    with tempfile.TemporaryDirectory() as output:
        began = time.monotonic()
        embeddings = EmbeddingOptions((folder,), embedding_column=column)
        classifier = ClassifierOptions(f"{output}/classifier", skip_image_classifier=True)
        result = run(TrainOptions(embeddings, classifier, RowOptions(split_seed=seed, test_split=0.3)))
        seconds = time.monotonic() - began
        wanted = ["uri", "key", "label", "predicted"]
        predictions = pq.read_table(f"{output}/classifier/predictions.parquet", columns=wanted).to_pylist()
    is_right = {(row["uri"], row["key"]): row["label"] == row["predicted"] for row in predictions}
    tests = np.array([name in is_right for name in rows])
    labels, matrix = np.array([label for label, _ in rows.values()]), np.stack([vector for _, vector in rows.values()])
    began = time.monotonic()
    baseline = make_pipeline(StandardScaler(), LogisticRegressionCV(max_iter=1000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of defaults that will change
        baseline.fit(matrix[~tests], labels[~tests])
    theirs = baseline.predict(matrix[tests]) == labels[tests]
    ours = np.array([is_right[name] for name in rows if name in is_right])
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return {
        "seed": seed,
        "test_rows": int(tests.sum()),
        "imagebeam": result.metrics["accuracy"],
        "baseline": float(theirs.mean()),
        "only_imagebeam_right": only_ours,
        "only_baseline_right": only_theirs,
        "p": _mcnemar(only_ours, only_theirs),
        "imagebeam_seconds": seconds,
        "baseline_seconds": time.monotonic() - began,
        "solution": {name: result.metrics["training"][name] for name in ("inverse_penalty", "vector_transform")},
    }


def _mcnemar(ours: int, theirs: int) -> float:
    """Of the exact test, two-sided."""
    from scipy.stats import binomtest

    return float(binomtest(ours, ours + theirs).pvalue) if ours + theirs else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", help="output folder of a finished run with labels (default: digits)")
    parser.add_argument("--column", default="embedding", help="embedding column")
    parser.add_argument("--splits", type=int, default=10)
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.output or write_digits(Path(temporary))
        labelled = read_rows(folder, args.column)
        found = []
        for seed in range(args.splits):
            found.append(compare(folder, args.column, labelled, seed))
            print(f"split {seed}: {found[-1]['imagebeam']:.4f}  {found[-1]['baseline']:.4f}", flush=True)
    differences = [pair["imagebeam"] - pair["baseline"] for pair in found]
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    rows = [
        (
            f"split {pair['seed']}",
            f"{pair['imagebeam']:.4f}  {pair['baseline']:.4f}  {difference:+.4f}  "
            f"{pair['only_imagebeam_right']:>3} {pair['only_baseline_right']:>3}  {pair['p']:.2f}",
        )
        for pair, difference in zip(found, differences, strict=True)
    ]
    means = [statistics.mean(pair[name] for pair in found) for name in ("imagebeam", "baseline")]
    rows.append(("mean", f"{means[0]:.4f}  {means[1]:.4f}  {means[0] - means[1]:+.4f} (standard error {error:.4f})"))
    ahead, behind = (sum(sign * difference > 0 for difference in differences) for sign in (1, -1))
    beyond = sum(pair["p"] < CHANCE and difference < 0 for pair, difference in zip(found, differences, strict=True))
    rows.append(("ahead, equal, behind", f"{ahead}, {len(found) - ahead - behind}, {behind}"))
    rows.append((f"behind with p < {CHANCE}", str(beyond)))
    for name in ("imagebeam", "baseline"):
        median = statistics.median(pair[f"{name}_seconds"] for pair in found)
        rows.append((f"{name}: seconds, median", f"{median:.1f}"))
    print(
        "accuracy on the test rows: imagebeam train, LogisticRegressionCV, difference; rows that only the one and only "
        "the other has right, p"
    )
    publish("classifiers", {"splits": found, "mean_difference": means[0] - means[1], "standard_error": error}, rows)


if __name__ == "__main__":
    main()
