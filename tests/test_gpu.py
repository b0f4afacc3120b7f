"""What only an NVIDIA GPU can show. Of the standard library, so that a bare machine can run it:
python tests/test_gpu.py
"""

import unittest
import warnings
from unittest import mock

import numpy as np
import torch

from vaelib import VAE, data, fit, fit_seeds, graphs, loop, metrics, sprites
from vaelib.likelihoods import Bernoulli, Gaussian
from vaelib.networks import conv, mlp
from vaelib.objectives import ELBO, ComputedGamma, Narrowing
from vaelib.schedules import Warmup

RUN = {"batch_size": 32, "lr": 1e-3, "progress": False}


def images(n=256):
    index = torch.randperm(sprites.N_IMAGES, generator=torch.Generator().manual_seed(0))[:n]
    return sprites.render(sprites.values(index)).unsqueeze(1)


def conv_vae():
    return VAE(*conv(64), Bernoulli()).cuda()


def table_vae():
    return VAE(*mlp(13), Gaussian(torch.ones(13), learn=True)).cuda()


def narrow_vae():
    return VAE(*mlp(13, batch_norm=False)).cuda()


CASES = {
    "images": (conv_vae, ELBO, images),
    "table": (table_vae, lambda: ELBO(schedule=Warmup(fraction=0.5)), lambda: data.wine().x),
    "computed gamma": (lambda: VAE(*mlp(13)).cuda(), ComputedGamma, lambda: data.wine().x),
    "narrowing": (narrow_vae, lambda: Narrowing(9.0), lambda: data.wine().x),
}


def run(make, objective, x, steps=40, **options):
    torch.manual_seed(0)
    model = make()
    return model, fit(model, objective(), x, steps=steps, report_every=steps // 4, **RUN, **options)


def waits_in(steps):
    """How often torch sees the host wait for the device in a run with four reports."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run(table_vae, ELBO, data.wine().x, steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(each.message) for each in caught)


@unittest.skipUnless(torch.cuda.is_available(), "needs an NVIDIA GPU")
class OnTheDevice(unittest.TestCase):
    def setUp(self):
        exact = {"enabled": True, "deterministic": True, "allow_tf32": False}
        self.enterContext(torch.backends.cudnn.flags(**exact))
        self.enterContext(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="the error never came down")
        # Without a graph the losses would be right as well.
        warnings.filterwarnings("error", message="the step could not be recorded")

    def test_a_graph_gives_the_losses_of_the_plain_steps(self):
        for name, (make, objective, x) in CASES.items():
            with self.subTest(name):
                _, graph = run(make, objective, x())
                with mock.patch.object(loop, "graphed", lambda step, device: step):
                    _, plain = run(make, objective, x())
                for term in plain.terms:
                    np.testing.assert_allclose(graph[term], plain[term], rtol=1e-5, atol=1e-5)

    def test_the_step_is_recorded(self):
        replayed = torch.cuda.CUDAGraph.replay
        with mock.patch.object(
            torch.cuda.CUDAGraph, "replay", autospec=True, side_effect=replayed
        ) as replay:
            run(conv_vae, ELBO, images())
        self.assertEqual(replay.call_count, 40 - graphs.EAGER)

    def test_no_step_waits(self):
        once = waits_in(40)
        self.assertGreater(once, 0)  # torch sees the reports, and the check at the door
        # Orders and noise are drawn anew every 65 steps.
        self.assertEqual(waits_in(200), once)

    def test_what_cannot_be_recorded_runs_as_it_is(self):
        class Branches(ELBO):
            def forward(self, model, x, eps=None):
                terms = super().forward(model, x, eps)
                return terms if terms["loss"] > -1e9 else {**terms, "loss": 0 * terms["loss"]}

        with self.assertWarnsRegex(UserWarning, "could not be recorded"):
            _, fallen_back = run(table_vae, Branches, data.wine().x)
        _, plain = run(table_vae, ELBO, data.wine().x)
        np.testing.assert_allclose(fallen_back["loss"], plain["loss"], rtol=1e-5)

    def test_a_recording_that_fails_leaves_the_device_usable(self):
        """What torch's search for waits oversees fails in the recording itself."""

        class Pauses(ELBO):
            def forward(self, model, x, eps=None):
                if torch.cuda.is_current_stream_capturing():
                    torch.cuda.synchronize()
                return super().forward(model, x, eps)

        with self.assertWarnsRegex(UserWarning, "could not be recorded"):
            _, fallen_back = run(table_vae, Pauses, data.wine().x)
        _, plain = run(table_vae, ELBO, data.wine().x)
        np.testing.assert_allclose(fallen_back["loss"], plain["loss"], rtol=1e-5)
        self.assertTrue(torch.randn(3, device="cuda").isfinite().all())

    def test_seeds_side_by_side_equal_lone_runs(self):
        for name, (make, objective, x) in CASES.items():
            with self.subTest(name):
                runs = fit_seeds(make, objective(), x(), seeds=[0, 1], steps=40, **RUN)
                _, lone = run(make, objective, x(), seed=0)
                np.testing.assert_allclose(
                    runs.history["loss"][0, -10:].mean(), lone["loss"][-1], rtol=1e-3
                )

    def test_bytes_stay_bytes_on_the_device(self):
        x = torch.zeros(20_000, 1, 64, 64, dtype=torch.uint8).cuda()  # 82 MB; as floats 328
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(conv_vae, ELBO, x, steps=8)
        self.assertLess(torch.cuda.max_memory_allocated() - before, 328e6)

    def test_sprites_are_drawn_alike(self):
        values = sprites.values(torch.arange(0, sprites.N_IMAGES, 101))
        self.assertTrue(torch.equal(sprites.render(values.cuda()).cpu(), sprites.render(values)))

    def test_scikit_learn_is_handed_what_it_can_read(self):
        wine = data.wine()
        x, y = wine.x.cuda(), wine.y.cuda()
        self.assertEqual(metrics.knn_accuracy(x, y), metrics.knn_accuracy(wine.x, wine.y))
        self.assertEqual(
            metrics.trustworthiness(x, x[:, :2]), metrics.trustworthiness(wine.x, wine.x[:, :2])
        )

    def test_narrowing_finds_a_rank(self):
        g = torch.Generator().manual_seed(3)
        axes = torch.linalg.qr(torch.randn(16, 16, generator=g)).Q[:3]
        x = torch.randn(2000, 3, generator=g) * torch.tensor([2.0, 1.5, 1.0]) @ axes
        x = x + 0.1 * torch.randn(2000, 16, generator=g)  # of error 0.13 with three, 1.1 with two
        torch.manual_seed(0)
        model = VAE(*mlp(16, hidden=(), n_latents=10)).cuda()
        fit(model, Narrowing(0.6), x, steps=3000, batch_size=128, lr=1e-2, progress=False)
        self.assertEqual(int(model.open.sum()), 3)


if __name__ == "__main__":
    unittest.main()
