"""DeepCTR-Torch's models on MovieLens-1M's time split: the independent figures for examples/ctr_movielens.rs.

Usage: python ctr_pytorch.py FOLDER MODEL [SEEDS] [FIRST]    (needs torch, numpy, scikit-learn, deepctr-torch)

MODEL is deepfm, xdeepfm, dcn or autoint. Same rule for samples and split, same eight fields, same sizes as the defaults
of the ctr stage (for autoint: --set attention_dim=8, because DeepCTR's heads share the embedding's width); own reading and
encoding, DeepCTR's layers, its first weights, PyTorch's random numbers. Parts that the papers do not have are left out:
DCN's and AutoInt's first-order weights, AutoInt's deep part, CIN's ReLU and split.
"""
import re
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models import DCN, AutoInt, DeepFM, xDeepFM
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
    columns, sizes = [], []
    for values in zip(*rows):
        numbers = {}
        for v in values[: cuts[1]]:
            numbers.setdefault(v, len(numbers) + 1)
        columns.append(np.array([numbers.get(v, 0) for v in values], dtype=np.float32))
        sizes.append(len(numbers) + 1)
    x, y = torch.from_numpy(np.stack(columns, 1)), torch.tensor(labels, dtype=torch.float32)
    return [(x[a:b], y[a:b]) for a, b in zip(cuts, cuts[1:])], sizes


def build(name, sizes, seed):
    fields = [SparseFeat(f"field{n}", size, embedding_dim=DIM) for n, size in enumerate(sizes)]
    shared = dict(l2_reg_embedding=0, init_std=0.01, seed=seed)
    if name == "deepfm":
        return DeepFM(fields, fields, dnn_hidden_units=HIDDEN, l2_reg_linear=0, **shared)
    if name == "xdeepfm":
        return xDeepFM(fields, fields, dnn_hidden_units=HIDDEN, cin_layer_size=(16, 16), cin_split_half=False,
                       cin_activation="linear", l2_reg_linear=0, **shared)
    if name == "dcn":
        return DCN([], fields, cross_num=3, dnn_hidden_units=HIDDEN, l2_reg_linear=0, l2_reg_cross=0, **shared)
    return AutoInt([], fields, att_layer_num=3, att_head_num=2, dnn_hidden_units=(), **shared)


def looked_up(model, x):
    """The squares of the embeddings and first-order weights of a batch, over twice its samples."""
    tables = [model.embedding_dict, model.linear_model.embedding_dict]
    squares = sum(table[f"field{n}"](x[:, n].long()).square().sum()
                  for table in tables for n in range(x.shape[1]) if f"field{n}" in table)
    return squares / 2 / len(x)


def predict(model, x):
    with torch.no_grad():
        return torch.cat([model(part)[:, 0] for part in x.split(8192)]).numpy()


def main():
    folder, name, seeds, first, max_epochs = *sys.argv[1:3], 1, "deepctr", 20
    if len(sys.argv) > 3:
        seeds = int(sys.argv[3])
    if len(sys.argv) > 4:
        first = sys.argv[4]
    (train, valid, test), sizes = load(folder)
    print("torch", torch.__version__, "samples", [len(s[1]) for s in (train, valid, test)], "features", sum(sizes), flush=True)
    for seed in range(1, seeds + 1):
        torch.manual_seed(seed)
        model = build(name, sizes, seed)
        if first == "torch":
            for layer in model.modules():
                if isinstance(layer, torch.nn.Linear):
                    layer.reset_parameters()
        opt = torch.optim.Adam(model.parameters(), lr=LR)
        aucs, best, start = [], None, time.time()
        for epoch in range(max_epochs):
            for rows in torch.randperm(len(train[1])).split(BATCH):
                x = train[0][rows]
                loss = F.binary_cross_entropy(model(x)[:, 0], train[1][rows]) + L2 * looked_up(model, x)
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
        print(f"{name}, first weights of {first}, seed {seed}: test auc {roc_auc_score(y, p):.4f} logloss {log_loss(y, p.astype(np.float64)):.4f} "
              f"accuracy {accuracy_score(y, p > 0.5):.4f}; best epoch {int(np.argmax(aucs)) + 1} of {len(aucs)}, "
              f"valid auc {[round(a, 4) for a in aucs]}, {seconds:.1f} s an epoch", flush=True)


main()
