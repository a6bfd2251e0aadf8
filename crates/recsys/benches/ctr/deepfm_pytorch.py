"""DeepFM in PyTorch on MovieLens-1M's time split: the independent figure for examples/deepfm_ml1m.rs.

Usage: python deepfm_pytorch.py FOLDER [SEEDS] [MAX_EPOCHS]    (needs torch, numpy, scikit-learn)

Same rule for samples and split, same eight fields, same hyper-parameters as the defaults of the ctr stage; own
reading, own encoding, own model, PyTorch's random numbers.
"""
import re
import sys
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

DIM, HIDDEN, LR, L2, BATCH, PATIENCE = 16, [256, 128], 1e-3, 1e-5, 2048, 2


def read(folder, name):
    with open(f"{folder}/{name}", encoding="iso-8859-1") as file:
        return [line.rstrip("\n").split("::") for line in file]


def load(folder):
    users = {int(u): rest for u, *rest in read(folder, "users.dat")}
    movies = {int(m): (title, genres) for m, title, genres in read(folder, "movies.dat")}
    ratings = sorted((int(t), int(u), int(m), int(s)) for u, m, s, t in read(folder, "ratings.dat"))
    seen, rows, labels = {}, [], []
    for _, u, m, stars in ratings:
        seen[u] = seen.get(u, 0) + 1
        if seen[u] > 5:
            title, genres = movies[m]
            year = re.search(r"\((\d{4})\)\s*$", title)
            rows.append((u, *users[u], m, genres.split("|")[0], year.group(1) if year else ""))
            labels.append(stars > 3)
    n = len(rows)
    cuts = [0, n * 8 // 10, n * 8 // 10 + n // 10, n]
    columns, total = [], 0
    for values in zip(*rows):
        numbers = {}
        for v in values[: cuts[1]]:
            numbers.setdefault(v, len(numbers) + 1)
        columns.append(np.array([numbers.get(v, 0) for v in values], dtype=np.int64) + total)
        total += len(numbers) + 1
    x, y = torch.from_numpy(np.stack(columns, 1)), torch.tensor(labels, dtype=torch.float32)
    return [(x[a:b], y[a:b]) for a, b in zip(cuts, cuts[1:])], total


class DeepFM(nn.Module):
    def __init__(self, features, fields):
        super().__init__()
        self.first, self.embedding = nn.Embedding(features, 1), nn.Embedding(features, DIM)
        nn.init.zeros_(self.first.weight)
        nn.init.normal_(self.embedding.weight, std=0.01)
        layers, width = [], fields * DIM
        for h in HIDDEN:
            layers += [nn.Linear(width, h), nn.ReLU()]
            width = h
        self.deep = nn.Sequential(*layers, nn.Linear(width, 1))
        for layer in self.deep:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        w, v = self.first(x)[..., 0], self.embedding(x)
        pairs = (v.sum(1).square() - v.square().sum(1)).sum(1) / 2
        logit = self.bias + w.sum(1) + pairs + self.deep(v.flatten(1))[:, 0]
        return logit, (v.square().sum() + w.square().sum()) / 2 / len(x)


def predict(model, x):
    with torch.no_grad():
        return torch.cat([torch.sigmoid(model(part)[0]) for part in x.split(8192)]).numpy()


def main():
    folder, seeds, max_epochs = sys.argv[1], 1, 20
    if len(sys.argv) > 2:
        seeds = int(sys.argv[2])
    if len(sys.argv) > 3:
        max_epochs = int(sys.argv[3])
    (train, valid, test), features = load(folder)
    print("torch", torch.__version__, "samples", [len(s[1]) for s in (train, valid, test)], "features", features, flush=True)
    for seed in range(1, seeds + 1):
        torch.manual_seed(seed)
        model = DeepFM(features, train[0].shape[1])
        opt = torch.optim.Adam(model.parameters(), lr=LR)
        aucs, best, start = [], None, time.time()
        for epoch in range(max_epochs):
            for rows in torch.randperm(len(train[1])).split(BATCH):
                logit, squares = model(train[0][rows])
                loss = F.binary_cross_entropy_with_logits(logit, train[1][rows]) + L2 * squares
                opt.zero_grad()
                loss.backward()
                opt.step()
            aucs.append(roc_auc_score(valid[1], predict(model, valid[0])))
            print(f"seed {seed} epoch {epoch + 1}: valid auc {aucs[-1]:.4f}", file=sys.stderr, flush=True)
            if aucs[-1] == max(aucs):
                best = {k: v.clone() for k, v in model.state_dict().items()}
            if epoch - int(np.argmax(aucs)) >= PATIENCE:
                break
        seconds = (time.time() - start) / len(aucs)
        model.load_state_dict(best)
        p, y = predict(model, test[0]), test[1].numpy()
        print(f"seed {seed}: test auc {roc_auc_score(y, p):.4f} logloss {log_loss(y, p.astype(np.float64)):.4f} "
              f"accuracy {accuracy_score(y, p > 0.5):.4f}; best epoch {int(np.argmax(aucs)) + 1} of {len(aucs)}, "
              f"valid auc {[round(a, 4) for a in aucs]}, {seconds:.1f} s an epoch", flush=True)


main()
