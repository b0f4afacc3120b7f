"""Makes a saved model for tests/test_files.py: once for each format, and never again after that.

python tests/saved/make.py tests/saved/format_2
"""

import json
import sys
from pathlib import Path

import torch
from sklearn.preprocessing import StandardScaler

import vaelib
from vaelib.likelihoods import Bernoulli, Categorical, Gaussian, LogCosh, Mixed

ROWS = [
    [3.0, 10.0, 1.0, 0.0, 1.0, 0.0],
    [1.0, 40.0, 0.0, 1.0, 0.0, 0.0],
    [2.0, 25.0, 1.0, 0.0, 0.0, 1.0],
]

torch.manual_seed(0)
sigma = torch.tensor([0.5])
parts = [(Gaussian(sigma, learn=True), 1), (LogCosh(2.0), 1), (Bernoulli(), 1), (Categorical(), 3)]
networks = vaelib.networks.mlp(6, hidden=(4, 3), n_latents=3, activation="silu")
model = vaelib.VAE(*networks, Mixed(*parts))
scaler = StandardScaler().fit(ROWS)
scaler.mean_[2:], scaler.scale_[2:] = 0, 1
x = torch.tensor(scaler.transform(ROWS), dtype=torch.float32)
model.open[1] = 0
model = model.narrowed()
vaelib.fit(model, vaelib.objectives.ELBO(), x, steps=9, batch_size=3, progress=False)

file = Path(sys.argv[1]).with_suffix(".safetensors")
vaelib.save(file, model, scaler)
with torch.no_grad():
    mu = model.encode(x).mu
    expected = {
        "rows": ROWS,
        "codes": mu.tolist(),
        "log densities": model.decode(mu).log_prob(x).tolist(),
        "steps trained": model.steps_trained,
        "model": repr(model),
    }
file.with_suffix(".json").write_text(json.dumps(expected, indent=1) + "\n", "utf-8")
