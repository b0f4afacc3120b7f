"""What every notebook of the book has to be; one small function a check.

Each takes the notebook and its path relative to the checkout and returns a list of problems, in
words that name the cell and the remedy; an empty list is a pass. `ALL` lists the checks.
"""

from checks_chapter import (
    asserts_its_claims,
    cells_short,
    closes_well,
    opens_well,
    runs_its_trap,
    sets_up,
    solves_its_exercises,
)
from checks_code import made_with_this_code, prints_this_source
from checks_figures import figures_described, players_described
from checks_outputs import (
    no_dead_controls,
    no_errors,
    no_machine_traces,
    plain_metadata,
    run_in_order,
    small,
)

ALL = [
    no_errors,
    run_in_order,
    plain_metadata,
    no_dead_controls,
    figures_described,
    players_described,
    no_machine_traces,
    small,
    made_with_this_code,
    prints_this_source,
    opens_well,
    sets_up,
    runs_its_trap,
    asserts_its_claims,
    solves_its_exercises,
    closes_well,
    cells_short,
]
