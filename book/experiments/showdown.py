"""The showdown on all of its tables, by the chapter's cells with the tag `experiment`.

    python book/experiments/showdown.py
    python book/experiments/showdown.py --backend dask --scheduler tcp://node1:8786

Every balance is written as soon as it is done; started again, it goes on from there.
"""

import argparse
from pathlib import Path

import shared


def run(contest, table, balance):
    return contest(table, balance).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("book/results/showdown.json"))
    parser.add_argument(
        "--tables", nargs="+", help="some of the chapter's tables, not all"
    )
    arguments = shared.parse(parser)

    chapter = shared.chapter("balance/showdown")
    tables, balances = chapter["tables"], chapter["balances"]
    tasks = {}
    for name in arguments.tables or tables:
        steps = max(1, round(arguments.budget * tables[name].steps))
        table = tables[name]._replace(steps=steps)
        for balance in balances:
            tasks[name, balance] = (run, chapter["contest"], table, balance)
    plan = [(name, balance) for name in tables for balance in balances]
    shared.sweep(arguments, plan, tasks)


if __name__ == "__main__":
    main()
