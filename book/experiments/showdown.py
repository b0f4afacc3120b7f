"""The showdown on all of its tables, by the chapter's cells with the tag `experiment`.

    python book/experiments/showdown.py

Every balance is written as soon as it is done; started again, it goes on from there.
"""

import argparse
from pathlib import Path

import shared
from tqdm import tqdm

from vaelib import records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("book/results/showdown.json"))
    parser.add_argument(
        "--tables", nargs="+", help="some of the chapter's tables, not all"
    )
    parser.add_argument("--steps", type=int, help="steps of each run, for a rehearsal")
    arguments = parser.parse_args()

    chapter = shared.chapter("balance/showdown")
    results = shared.done(arguments.out)
    todo = [
        (table, balance)
        for table in arguments.tables or chapter["tables"]
        for balance in chapter["balances"]
        if balance not in results.get(table, {})
    ]
    for table, balance in tqdm(todo):
        setup = chapter["tables"][table]
        if arguments.steps:
            setup = setup._replace(steps=arguments.steps)
        results.setdefault(table, {})[balance] = chapter["contest"](
            setup, balance
        ).tolist()
        records.write(arguments.out, results)


if __name__ == "__main__":
    main()
