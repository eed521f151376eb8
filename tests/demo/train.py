"""One task of the sweep: predict a column of the replicated table from the others.

Ridge regression on random cosine features (Rahimi and Recht, 2007), one hyperparameter pair a task. Reads the
table with np.memmap: names and dtypes come from the version's manifest, nothing is parsed. Also run outside
the pods by the demo, to recompute the best score.
"""

import json
import os
import sys

import numpy as np

LAMBDAS = (1e-3, 1e-1, 1e1, 1e2, 1e3)
WIDTHS = (0, 16, 48, 96)  # number of random features beside the plain ones


def load(folder):
    with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as f:
        manifest = json.load(f)
    dtype = np.dtype([(c["name"], c["dtype"]) for c in manifest["columns"]])
    rows = np.memmap(os.path.join(folder, manifest["files"][0]["path"]), dtype=dtype, mode="r")
    assert len(rows) == manifest["rows"], (len(rows), manifest["rows"])
    return rows


def columns(rows, target):
    x = np.stack([np.log1p(np.abs(rows[n].astype(float))) for n in rows.dtype.names if n not in ("id", target)], 1)
    y = np.log1p(np.abs(rows[target].astype(float)))
    x = (x - x.mean(0)) / (x.std(0) + 1e-9)
    return x, y


def features(x, width):
    rng = np.random.default_rng(7)
    parts = [np.ones((len(x), 1)), x]
    if width:
        w = rng.normal(size=(x.shape[1], width)) / np.sqrt(x.shape[1])
        parts.append(np.cos(x @ w + rng.uniform(0, 2 * np.pi, width)) * np.sqrt(2 / width))
    return np.hstack(parts)


def score(folder, target, task):
    """Root mean squared error on held-out rows: of the fit, and of predicting the mean."""
    lam, width = LAMBDAS[task % 5], WIDTHS[task // 5 % 4]
    x, y = columns(load(folder), target)
    held = np.random.default_rng(1).random(len(y)) < 0.25
    f = features(x, width)
    train = f[~held]
    weights = np.linalg.solve(train.T @ train + lam * np.eye(f.shape[1]), train.T @ y[~held])

    def rmse(p):
        return float(np.sqrt(np.mean((y[held] - p) ** 2)))

    return {
        "task": task,
        "lambda": lam,
        "width": width,
        "rmse": rmse(f[held] @ weights),
        "rmse_mean": rmse(np.full(int(held.sum()), y[~held].mean())),
        "held_out": int(held.sum()),
    }


if __name__ == "__main__":
    folder, target = sys.argv[1], sys.argv[2]
    if len(sys.argv) > 3:  # outside the pods
        print(json.dumps(score(folder, target, int(sys.argv[3]))))
        sys.exit()
    row = score(folder, target, int(os.environ["RACKWRIGHT_TASK_INDEX"]))
    print("task {task}: lambda {lambda} width {width} rmse {rmse:.4f} (mean {rmse_mean:.4f})".format(**row))
    os.makedirs("/work/results", exist_ok=True)
    with open("/work/results/scores.jsonl", "w", encoding="utf-8") as f:
        f.write(json.dumps(row, separators=(",", ":")) + "\n")
    open("/work/SEAL", "w").close()
