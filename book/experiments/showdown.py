"""The showdown on all of its tables, by the chapter's cells with the tag `experiment`.

    python book/experiments/showdown.py
    python book/experiments/showdown.py --tables wine mixed --folds 0 1
    python book/experiments/showdown.py --backend dask --scheduler tcp://node1:8786

Every fold of a table is written as soon as it is done, and the networks of a fold as
they are trained: stopped or killed, the same command goes on from there.
"""

import argparse
from pathlib import Path

import shared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("book/results/showdown.json"))
    parser.add_argument("--tables", nargs="+", help="some of the tables, not all")
    parser.add_argument("--folds", type=int, nargs="+", default=range(10))
    arguments = shared.parse(parser)

    chapter = shared.chapter("balance/showdown")
    tables = {
        # In eighths, at which some contestants may stop.
        name: each._replace(steps=8 * max(1, round(arguments.budget * each.steps / 8)))
        for name, each in chapter["tables"].items()
    }
    for (name, fold), result in shared.done(arguments.out, depth=2).items():
        if result["steps"] != tables[name].steps:
            parser.error(
                f"{arguments.out} holds runs of {result['steps']} steps, not "
                f"{tables[name].steps}, in fold {fold} of {name}; name another --out"
            )

    tasks = {}
    for name in arguments.tables or tables:
        for fold in arguments.folds:
            key = (name, str(fold))
            folder = shared.unfinished(arguments.out, key)
            folder = folder and folder / f"{tables[name].steps} steps"
            tasks[key] = (chapter["contest"], tables[name], fold, folder)
    plan = [(name, str(fold)) for name in tables for fold in range(10)]
    shared.sweep(arguments, plan, tasks)


if __name__ == "__main__":
    main()
