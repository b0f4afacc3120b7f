"""The protocol on all five data sets, by the chapter's cells with the tag `experiment`.

    python book/experiments/five_datasets.py
    python book/experiments/five_datasets.py --device cuda --budget 60 --out long.json
    python book/experiments/five_datasets.py --backend dask --scheduler tcp://node1:8786

Every method and width is written as soon as all of its seeds are done. Until then its
state lies in a folder beside the record, so that a run which was killed goes on from
its last report. A budget of 60 makes plain runs of 180,000 batches.
"""

import argparse
from pathlib import Path

import shared


def run(contest, setup, device, *more):
    x, held_out = (each.to(device) for each in (setup.x, setup.held_out))
    return contest(setup._replace(x=x, held_out=held_out), *more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument(
        "--out", type=Path, default=Path("book/results/five_datasets.json")
    )
    parser.add_argument("--data", nargs="+", help="some of the data sets, not all")
    arguments = shared.parse(parser)

    chapter = shared.chapter("narrowing/five_datasets")
    setups = {
        # Even, since the second half of the steps has a learning rate of its own.
        name: each._replace(steps=2 * max(1, round(arguments.budget * each.steps / 2)))
        for name, each in chapter["setups"].items()
    }
    plans = {
        name: [(name, method, str(n)) for method, n in chapter["plan"](setup)]
        for name, setup in setups.items()
    }
    chosen = [key for name in arguments.data or setups for key in plans[name]]

    results = shared.done(arguments.out, depth=3)
    for key in results.keys() & chosen:
        rows, steps = results[key], setups[key[0]].steps
        if (seeds := [row["seed"] for row in rows]) != arguments.seeds:
            parser.error(
                f"{arguments.out} holds seeds {seeds}, not {arguments.seeds}; "
                "name another --out"
            )
        if key[1] == "plain" and rows[0]["steps"] != steps:
            parser.error(
                f"{arguments.out} holds runs of {rows[0]['steps']} steps, not {steps}; "
                "name another --out"
            )

    def task(name, method, n):
        plain = method == "plain"
        tau = None if plain else chapter["allowed"](results[name, "plain", n])
        setup = setups[name]
        folder = shared.unfinished(arguments.out, (name, method, n))
        setting = (
            method,
            int(n),
            tau,
            arguments.seeds,
            folder and folder / f"{setup.steps} steps",
        )
        return run, chapter["contest"], setup, arguments.device, *setting

    plan = [key for keys in plans.values() for key in keys]
    for wave in ({"plain"}, {"narrow", "held"}):  # the second needs τ from the first
        tasks = {key: task(*key) for key in chosen if key[1] in wave}
        results = shared.sweep(arguments, plan, tasks)


if __name__ == "__main__":
    main()
