"""Our loss is pythae's, given the same weights and the same noise (`pip install -e '.[bench]'`)."""

import pytest
import torch

from vaelib import VAE, data
from vaelib.likelihoods import Bernoulli
from vaelib.networks import mlp
from vaelib.objectives import ELBO

models = pytest.importorskip("pythae.models", reason="pythae is in the extra 'bench'")
nn = pytest.importorskip("pythae.models.nn")
base = pytest.importorskip("pythae.models.base.base_utils")


class PythaeEncoder(nn.BaseEncoder):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x):
        mu, logvar = self.encoder(x)
        return base.ModelOutput(embedding=mu, log_covariance=logvar)


class PythaeDecoder(nn.BaseDecoder):
    def __init__(self, decoder, activation):
        super().__init__()
        self.decoder, self.activation = decoder, activation

    def forward(self, z):
        return base.ModelOutput(reconstruction=self.activation(self.decoder(z)))


def pythae_loss(ours, x, kind):
    activation = torch.sigmoid if kind == "bce" else torch.nn.Identity()
    theirs = models.VAE(
        models.VAEConfig(
            input_dim=(x.shape[1],), latent_dim=ours.n_latents, reconstruction_loss=kind
        ),
        encoder=PythaeEncoder(ours.encoder),
        decoder=PythaeDecoder(ours.decoder, activation),
    )
    torch.manual_seed(1)
    return theirs({"data": x})


@pytest.mark.parametrize("kind", ["mse", "bce"])
def test_the_loss_and_its_gradients_are_pythae_s(kind):
    x = data.wine().x if kind == "mse" else data.digits().x
    torch.manual_seed(0)
    ours = VAE(*mlp(x.shape[1], batch_norm=False), Bernoulli() if kind == "bce" else None)
    torch.manual_seed(1)
    eps = torch.randn(len(x), 2)
    terms = ELBO()(ours, x, eps)
    theirs = pythae_loss(ours, x, kind)
    # Theirs leaves out what does not depend on the weights.
    constant = 0.5 * x.shape[1] * torch.log(torch.tensor(2 * torch.pi)) if kind == "mse" else 0.0
    torch.testing.assert_close(terms["loss"] - constant, theirs.loss)
    torch.testing.assert_close(terms["kl"].sum(), theirs.reg_loss)
    parameters = list(ours.parameters())
    for mine, other in zip(
        torch.autograd.grad(terms["loss"], parameters),
        torch.autograd.grad(theirs.loss, parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
