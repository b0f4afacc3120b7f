"""The protocol on all five data sets, by the chapter's cells with the tag `experiment`.

    python book/experiments/five_datasets.py

Every method and width is written as soon as all of its seeds are done. Until then its
state lies in a folder beside the record, so that a run which was killed goes on from
its last report.
"""

import argparse
import shutil
from pathlib import Path

import shared
from tqdm import tqdm

from vaelib import records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument(
        "--out", type=Path, default=Path("book/results/five_datasets.json")
    )
    parser.add_argument("--data", nargs="+", help="some of the data sets, not all")
    parser.add_argument("--steps", type=int, help="of a plain run, for a rehearsal")
    arguments = parser.parse_args()

    chapter = shared.chapter("narrowing/five_datasets")
    results = shared.done(arguments.out)
    todo = []
    for name in arguments.data or chapter["setups"]:
        setup = chapter["setups"][name]
        x, held_out = (each.to(arguments.device) for each in (setup.x, setup.held_out))
        setup = setup._replace(x=x, held_out=held_out)
        if arguments.steps:
            setup = setup._replace(steps=arguments.steps)
        todo += [(name, setup, *each) for each in chapter["plan"](setup)]

    unfinished = arguments.out.with_suffix(".unfinished")
    for name, setup, method, n in tqdm(todo):
        rows = results.setdefault(name, {}).setdefault(method, {})
        if str(n) not in rows:
            plain = results[name]["plain"]
            tau = None if method == "plain" else chapter["allowed"](plain[str(n)])
            checkpoint = unfinished / f"{name} {method} {n}"
            rows[str(n)] = chapter["contest"](
                setup, method, n, tau, arguments.seeds, checkpoint
            )
            records.write(arguments.out, results)
            shutil.rmtree(unfinished)
        if (seeds := [row["seed"] for row in rows[str(n)]]) != arguments.seeds:
            parser.error(
                f"{arguments.out} holds seeds {seeds}, not {arguments.seeds}; "
                "name another --out"
            )


if __name__ == "__main__":
    main()
