"""The showdown on all of its tables, by the chapter's cells with the tag `experiment`.

    python book/experiments/showdown.py

Every balance is written as soon as it is done; started again, it goes on from there.
"""

import argparse
import json
from pathlib import Path

import nbformat
from tqdm import tqdm

from vaelib import records

CHAPTER = Path(__file__).parent.parent / "balance" / "showdown.ipynb"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("book/results/showdown.json"))
    parser.add_argument(
        "--tables", nargs="+", help="some of the chapter's tables, not all"
    )
    parser.add_argument("--steps", type=int, help="steps of each run, for a rehearsal")
    arguments = parser.parse_args()

    chapter: dict = {}
    for cell in nbformat.read(CHAPTER, as_version=4).cells:
        if "experiment" in cell.metadata.get("tags", []):
            exec(cell.source, chapter)

    done = (
        json.loads(arguments.out.read_text("utf-8")) if arguments.out.exists() else {}
    )
    results = done.get("results", {})
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
