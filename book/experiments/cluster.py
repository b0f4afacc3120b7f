"""joblib's Dask backend, on a cluster that is there already."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from distributed import Client
from joblib._dask import DaskDistributedBackend


class Backend(DaskDistributedBackend):
    """Mends two things in joblib 1.6, which would run here, or wait for ever."""

    def effective_n_jobs(self, n_jobs: int) -> int:
        # For 1, joblib stays in its own process: a lone worker would be left idle.
        return max(2, super().effective_n_jobs(n_jobs))

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Any], None]
    ) -> Future[Any]:
        # joblib hears of a task's own errors, not of Dask's: that workers died of it or
        # could not load it. An exception that comes as the result, it raises.
        future = super().submit(func, callback)
        future.add_done_callback(lambda it: it.exception() and callback(it.exception()))
        return future


@contextlib.contextmanager
def backend(scheduler: str) -> Iterator[Backend]:
    """A backend for `joblib.Parallel`, once the cluster has a worker to work on."""
    with Client(scheduler, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
        for worker, threads in client.nthreads().items():
            if threads > 1:
                raise ValueError(
                    f"{worker} has {threads} threads, whose runs would share PyTorch's "
                    "seed; start it with: dask worker --nthreads 1"
                )
        yield Backend(client=client)
