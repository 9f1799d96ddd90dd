"""Pictures that the identity gates reject, by the number of people, from stored embeddings.

    python benchmarks/collisions.py JUDGED --others 0.9 --real OTHERS --far 0.05 [--people 50 200 400 1000]

`JUDGED`, `OTHERS`: folders of finished evaluations of faces (`score: {identity: {}}`) whose ids begin with the person
and a dash, like those of drawn faces. No person may be in both. The first people of `JUDGED` are tested with each rule.
`nearest` is not a rule of raygen: the share of pictures that are nearer to another person's centre than to their own.
"""

import argparse

import numpy as np

from raygen.evaluation.aggregate import gather_scores
from raygen.evaluation.score_matrix import IDENTITY, ScoreMatrix
from raygen.metrics.verification import unit
from raygen.selection.gates import ScorePool
from raygen.selection.identity_gates import IdentityGate
from raygen.store.run_store import RunStore


def pool_of(folder: str) -> ScorePool:
    """Embeddings, and the person of each picture."""
    embeddings = gather_scores(RunStore(f"{folder.rstrip('/')}/scores/reference").tables("scores"))
    scores = {name: some for name, some in embeddings.items() if name.startswith(IDENTITY)}
    return ScorePool(scores, {one: one.partition("-")[0] for some in scores.values() for one in some.ids})


def nearest(pool: ScorePool) -> float:
    """Share of pictures that are nearer to another person's centre than to the mean of their own person's others."""
    embeddings = pool.of(IDENTITY)
    assert embeddings is not None
    names = sorted(set(pool.people.values()))
    who = np.searchsorted(names, [pool.people[one] for one in embeddings.ids])
    x = unit(embeddings.vectors)
    sums = np.zeros((len(names), x.shape[1]))
    np.add.at(sums, who, x)
    cosines = x @ unit(sums).T
    cosines[np.arange(len(x)), who] = -2
    own = (x * unit(sums[who] - x)).sum(axis=1)
    return float(np.mean(cosines.max(axis=1) >= own))


def main() -> None:
    """Print one line per number of people."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judged")
    parser.add_argument("--real", required=True)
    parser.add_argument("--people", type=int, nargs="+", default=[50, 200, 400, 1000])
    parser.add_argument("--others", type=float, default=0.9)
    parser.add_argument("--far", type=float, nargs="+", default=[0.05])
    options = parser.parse_args()
    whole, real = pool_of(options.judged), pool_of(options.real)
    embeddings = whole.of(IDENTITY)
    assert embeddings is not None
    names = sorted(set(whole.people.values()))
    rules = [IdentityGate(others=options.others), *(IdentityGate(far=far, faces="real") for far in options.far)]
    head = [f"others: {options.others:g}", *(f"far: {far:g} (limit)" for far in options.far), "nearest"]
    print(f"| people | {' | '.join(head)} |\n|{'---|' * (len(head) + 1)}")
    for n in options.people:
        some = set(names[:n])
        keep = [i for i, one in enumerate(embeddings.ids) if whole.people[one] in some]
        ids = tuple(embeddings.ids[i] for i in keep)
        part = ScorePool(
            {IDENTITY: ScoreMatrix(ids, embeddings.vectors[keep])},
            {one: whole.people[one] for one in ids},
            {("real", None): real},
        )
        cells = []
        for rule in rules:
            limits = rule.limits(part)
            share = len(rule.judge(part, ScorePool(), limits)) / len(ids)
            cells.append(f"{share:.1%}" + (f" ({limits['others']:.4f})" if limits else ""))
        print(f"| {n:,} | {' | '.join([*cells, f'{nearest(part):.1%}'])} |", flush=True)


if __name__ == "__main__":
    main()
