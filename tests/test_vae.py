"""Variational autoencoders: their bound against closed forms, Monte Carlo and float64 replicas."""

import math

import pytest
import torch
from torch.nn import functional as F
from training import make_settings

from lib import models
from lib.evaluation import reconstruction as evaluation
from lib.models import vae
from lib.runtime.errors import UserError
from lib.training import variational
from lib.training.variational import VariationalSettings


def make(name: str = "vae", seed: int = 0, **config) -> vae.Vae:
    torch.manual_seed(seed)
    usual = {"channels": 1, "size": 8, "latent": 3, "hidden": 16, "depth": 1}
    return models.build(name, **(usual | config))


def some_images(count: int = 6, channels: int = 1, size: int = 8) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1))


NOBODY = torch.zeros(6, dtype=torch.long)


# ---- the bound


def test_the_kl_is_that_of_the_library_and_of_monte_carlo():
    torch.manual_seed(0)
    mu, logvar = torch.randn(2, 4).double(), torch.randn(2, 4).double()
    q = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    prior = torch.distributions.Normal(torch.zeros(2, 4).double(), 1.0)
    kl = vae.kl_per_unit(mu, logvar)
    assert torch.allclose(kl, torch.distributions.kl_divergence(q, prior))
    z = q.sample((200_000,))
    assert torch.allclose(kl, (q.log_prob(z) - prior.log_prob(z)).mean(0), atol=0.03)


def test_the_kl_of_the_prior_itself_is_zero():
    assert vae.kl_per_unit(torch.zeros(2, 3), torch.zeros(2, 3)).abs().max() == 0


def test_importance_weights_are_the_densities_written_out():
    model, images = make().eval(), some_images()
    out = model(images, samples=4)
    q = torch.distributions.Normal(out.mu, (0.5 * out.logvar).exp())
    prior = torch.distributions.Normal(0.0, 1.0)
    pixels = torch.distributions.Bernoulli(logits=out.logits, validate_args=False)
    expected = (
        pixels.log_prob(images.expand_as(out.logits)).flatten(2).sum(2)
        + prior.log_prob(out.z).sum(2)
        - q.log_prob(out.z).sum(2)
    )
    assert torch.allclose(out.log_weights(), expected, atol=1e-3)


def test_the_bound_grows_with_the_number_of_samples():
    model, images = make(depth=2).eval(), some_images(200)
    with torch.no_grad():
        model.decoder[-2].weight.mul_(10)  # so that images need another z than the posterior gives
    batches = [(images, torch.zeros(200, dtype=torch.long))]
    torch.manual_seed(0)
    found = [evaluation.importance_bound(model, batches, samples) for samples in (1, 10, 300)]
    assert found[0] > found[1] > found[2]
    elbo = evaluation.evidence(model, batches).negative_elbo
    assert abs(found[0] - elbo) < 1


def test_the_importance_bound_of_a_linear_model_is_its_closed_form():
    """With q the exact posterior, every weight is p(x), whatever z is drawn."""
    weight, sigma = torch.tensor([1.5, -0.5]).double(), 0.7
    x = torch.tensor([0.3, 1.1]).double()
    precision = 1 + weight.square().sum() / sigma**2
    mu, logvar = (weight @ x / sigma**2 / precision).view(1, 1), -precision.log().view(1, 1)
    z = mu + (0.5 * logvar).exp() * torch.randn(7, 1, 1).double()
    likelihood = torch.distributions.Normal(z * weight, sigma).log_prob(x).sum(-1)
    out = vae.Output(z, mu, logvar, z, likelihood)
    covariance = torch.outer(weight, weight) + sigma**2 * torch.eye(2).double()
    exact = torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance).log_prob(x)
    assert torch.allclose(out.log_weights(), exact.expand(7, 1))
    assert torch.allclose(vae.bound(out.log_weights()), exact)


def test_the_normal_likelihood_has_the_variance_that_makes_it_largest():
    """Its gradient is that of −D/2 · log MSE (Rybkin et al. 2021, equation 7)."""
    model, images = make(loss="mse").train(), some_images()
    logits = torch.randn(1, 6, 1, 8, 8, requires_grad=True)
    found = model.log_likelihood(logits, images)
    mse = (logits.sigmoid() - images).square().mean()
    expected = -6 * 64 / 2 * (mse.log() + 1 + math.log(2 * math.pi))
    assert torch.allclose(found.sum(), expected, rtol=1e-5)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (found.sum(), expected)]
    assert torch.allclose(*gradients, atol=1e-5)


def test_in_evaluation_the_variance_is_that_which_training_has_found():
    model, images = make(loss="mse").train(), some_images()
    logits = torch.zeros(1, 6, 1, 8, 8)
    for _ in range(400):
        model.log_likelihood(logits, images)
    mse = (images - 0.5).square().mean()
    assert torch.allclose(model.variance, mse, rtol=1e-2)
    density = torch.distributions.Normal(0.5, model.variance.sqrt()).log_prob(images)
    assert torch.allclose(
        model.eval().log_likelihood(logits, images)[0], density.flatten(1).sum(1), rtol=1e-4
    )


# ---- the objective


def test_the_loss_is_a_sum_over_pixels_and_over_images():
    model, images = make().eval(), some_images()
    torch.manual_seed(3)
    sums = variational.evidence(VariationalSettings(beta=2.0))(model, (images, NOBODY))
    torch.manual_seed(3)
    out = model(images)
    expected = F.binary_cross_entropy(out.logits[0].sigmoid(), images, reduction="sum")
    assert torch.allclose(sums["Reconstruction"], expected, rtol=1e-5)
    assert torch.allclose(sums["loss"], expected + 2 * sums["KL"], rtol=1e-5)
    assert sums["count"] == 6


def test_beta_zero_is_an_autoencoder():
    """The loss has no KL, so that the posterior of a trained one becomes narrow and the error small."""
    errors, widths = {}, {}
    for beta in (0.0, 1.0):
        model, images = make(latent=6, hidden=64, depth=2), some_images(32)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
        for _ in range(300):
            sums = variational.evidence(VariationalSettings(beta=beta))(model, (images, NOBODY))
            optimizer.zero_grad()
            (sums["loss"] / 32).backward()
            optimizer.step()
        if beta == 0:
            assert torch.equal(sums["loss"], sums["Reconstruction"])
        errors[beta] = (model.eval().reconstruct(images) - images).square().mean()
        widths[beta] = model.encode(images)[1].mean()
    assert errors[0.0] < 0.5 * errors[1.0]
    assert widths[0.0] < widths[1.0] - 1


def test_free_bits_leave_the_gradient_of_a_unit_that_uses_them_not_to_the_kl():
    model, images = make().train(), some_images()
    torch.manual_seed(0)
    plain = variational.evidence(VariationalSettings())(model, (images, NOBODY))
    torch.manual_seed(0)
    free = variational.evidence(VariationalSettings(free_bits=100.0))(model, (images, NOBODY))
    assert torch.allclose(free["loss"], plain["Reconstruction"] + 6 * 3 * 100.0)
    assert torch.equal(free["KL"], plain["KL"])
    gradients = [
        torch.autograd.grad(value, model.encoder.parameters())
        for value in (free["loss"], plain["Reconstruction"])
    ]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_the_importance_weighted_loss_is_minus_the_bound_in_training_alone():
    model, images = make(), some_images()
    objective = variational.evidence(VariationalSettings(iwae=5))
    torch.manual_seed(0)
    loss = objective(model.train(), (images, NOBODY))["loss"]
    torch.manual_seed(0)
    assert torch.allclose(loss, -vae.bound(model(images, samples=5).log_weights()).sum())
    sums = objective(model.eval(), (images, NOBODY))
    assert torch.allclose(sums["loss"], sums["Reconstruction"] + sums["KL"])


@pytest.mark.parametrize("kind", ["gaussian", "mask"])
def test_the_encoder_of_a_denoising_one_sees_noise_and_its_likelihood_is_of_the_clean_image(kind):
    seen = []
    model, images = make("dvae").train(), some_images()
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    objective = variational.evidence(VariationalSettings(noise=kind, noise_level=0.5))
    torch.manual_seed(0)
    sums = objective(model, (images, NOBODY))
    torch.manual_seed(0)
    expected = variational.noisy(images, kind, 0.5)
    assert torch.equal(seen[0], expected)
    assert not torch.equal(seen[0], images)
    out = model(variational.noisy(images, "none", 0.5), target=images)
    assert out.log_likelihood.shape == (1, 6)
    assert sums["loss"].isfinite()
    objective(model.eval(), (images, NOBODY))
    assert torch.equal(seen[-1], images)


@pytest.mark.parametrize(
    ("settings", "model", "message"),
    [
        ({"iwae": 2, "free_bits": 0.1}, "vae", "--free-bits does not go with --iwae"),
        ({"iwae": 2}, "vae-gan", "--iwae does not go with vae-gan"),
        ({"noise": "mask"}, "vae", "--noise goes with --model dvae alone"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, model, message):
    with pytest.raises(UserError, match=message):
        VariationalSettings(**settings).check(model)


# ---- the networks


@pytest.mark.parametrize("net", ["linear", "conv"])
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (36, 3), (64, 3)])
@pytest.mark.parametrize("name", ["vae", "cvae", "vae-gan"])
def test_images_of_any_square_size_come_back_in_their_shape(name, net, size, channels):
    model = make(name, net=net, size=size, channels=channels, **({"classes": 4} if name == "cvae" else {}))
    images = some_images(2, channels, size)
    labels = torch.tensor([0, 3])
    out = model(images, labels, samples=3)
    assert out.logits.shape == (3, 2, channels, size, size)
    assert out.z.shape == (3, 2, 3)
    assert model.reconstruct(images, labels).shape == images.shape


@pytest.mark.parametrize("net", ["linear", "conv"])
def test_another_size_is_refused_in_one_line(net):
    with pytest.raises(UserError, match="multiple of 4, not of 30 px"):
        make(net=net, size=30)


def test_only_a_conditional_one_is_told_the_class():
    images, labels = some_images(2), torch.tensor([0, 1])
    plain, told = make(classes=3), make("cvae", classes=3)
    z = torch.zeros(2, 3)
    assert torch.equal(*plain.decode(z, labels))
    assert not torch.equal(*told.decode(z, labels))
    assert torch.equal(plain.encode(images, labels)[0], plain.encode(images)[0])
    assert not torch.equal(told.encode(images, labels)[0], told.encode(images)[0])


def test_reconstruction_is_at_the_mean():
    model, images = make().eval(), some_images()
    mu, _ = model.encode(images)
    assert torch.equal(model.reconstruct(images), model.decode(mu))


# ---- VAE-GAN


def test_each_network_of_a_vae_gan_follows_its_own_loss():
    model, images = make("vae-gan").train(), some_images()
    settings = make_settings(optimizer="sgd", momentum=0.0, learning_rate=1.0)
    own = VariationalSettings(beta=0.5, gamma=3.0)
    update = variational.adversarial(model, settings, own)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    torch.manual_seed(0)
    loss = variational._adversarial_losses(model, images)
    wanted = {
        "encoder": 0.5 * loss["KL"] + loss["Feature_matching"],
        "decoder": 3.0 * loss["Feature_matching"] + loss["Generator"],
        "discriminator": variational.DISCRIMINATOR_RATE * loss["Discriminator"],
    }
    expected = {
        part: torch.autograd.grad(value / 6, list(getattr(model, part).parameters()), retain_graph=True)
        for part, value in wanted.items()
    }
    torch.manual_seed(0)
    update.step(update.runner(model, False), (images, NOBODY), 1.0)
    for part, gradients in expected.items():
        parameters = [(n, p) for n, p in model.named_parameters() if n.startswith(f"{part}.")]
        for (name, parameter), gradient in zip(parameters, gradients, strict=True):
            assert torch.allclose(before[name] - parameter, gradient, atol=1e-5), name


# ---- what is measured


def test_pca_is_the_best_linear_reconstruction():
    images = some_images(50)
    batches = [(images, torch.zeros(50, dtype=torch.long))]
    flat = images.flatten(1) - images.flatten(1).mean(0)
    singular = torch.linalg.svdvals(flat)
    expected = singular[5:].square().sum() / flat.numel()
    assert evaluation.pca_error(batches, batches, 5) == pytest.approx(float(expected), rel=1e-4)


def test_active_units_are_those_whose_mean_depends_on_the_image():
    mu = torch.stack([torch.randn(100), torch.full((100,), 0.3), 0.05 * torch.randn(100)], 1)
    found = evaluation.Evidence(0, 0, 0, 0, mu, mu, torch.zeros(100))
    assert found.active.tolist() == [True, False, False]


def test_a_blur_lowers_the_energy_and_copies_have_no_diversity():
    images = some_images(10)
    blurred = F.avg_pool2d(images, 3, 1, 1)
    assert evaluation.energy(blurred) < 0.2 * evaluation.energy(images)
    assert evaluation.diversity(images[:1].expand(5, -1, -1, -1)) == 0
    pairs = torch.pdist(images.flatten(1)).square().mean() / 64
    assert evaluation.diversity(images) == pytest.approx(float(pairs), rel=1e-4)
