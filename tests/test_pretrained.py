"""Torchvision's classifiers: their weights from a file, a name or at random, and what goes with them."""

import re
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from conftest import write_checkpoint
from torchvision import models

from lib.models import pretrained
from lib.runtime.errors import UserError

SMALL = "squeezenet1_1"  # 1.2 million weights, and a classifier that is a convolution


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder of torch's, and no network."""

    def fail(*_, **__):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.urlopen", fail)
    return tmp_path / "torch" / "hub" / "checkpoints"


def saved(path: Path, name: str = SMALL, classes: int = 1000, **options) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(3)
    model = models.get_model(name, num_classes=classes, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return path, model


def test_a_file_of_weights_gives_the_logits_of_the_network_that_it_was_saved_from(tmp_path):
    path, model = saved(tmp_path / "mine.pth")
    found = pretrained.load(SMALL, str(path))
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(found.model.eval()(images), model.eval()(images), rtol=0, atol=0)
    assert found.classes[285] == "Egyptian cat"


def test_weights_in_the_cache_are_found_by_their_name_and_by_default(cache):
    _, model = saved(cache / models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url.rpartition("/")[2])
    for weights in (None, "IMAGENET1K_V1"):
        found = pretrained.load(SMALL, weights)
        for name, value in model.state_dict().items():
            assert torch.equal(found.model.state_dict()[name], value), name


def test_without_a_network_one_line_says_what_to_put_where(cache):
    with pytest.raises(UserError) as caught:
        pretrained.load("resnet18")
    line = str(caught.value)
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in line
    assert str(cache) in line
    assert "--weights FILE" in line
    assert not list(cache.iterdir())


def test_a_damaged_file_in_the_cache_is_named(cache):
    cache.mkdir(parents=True)
    (cache / "resnet18-f37072fd.pth").write_bytes(b"half a file")
    with pytest.raises(UserError, match=r"resnet18-f37072fd.pth is not a checkpoint"):
        pretrained.load("resnet18")


def test_weights_of_other_classes_have_numbers_for_names(tmp_path):
    path, _ = saved(tmp_path / "three.pth", classes=3)
    found = pretrained.load(SMALL, str(path))
    assert found.classes == ("0", "1", "2")
    assert found.model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_weights_of_another_network_are_refused_in_one_line(tmp_path):
    path, _ = saved(tmp_path / "mine.pth")
    with pytest.raises(UserError, match=r"mine.pth does not fit"):
        pretrained.load("alexnet", str(path))


def test_a_checkpoint_of_the_project_is_sent_to_its_own_flag(tmp_path):
    with pytest.raises(UserError, match="--restore-file"):
        pretrained.load("resnet18", str(write_checkpoint(tmp_path / "own.pt")))


def test_random_weights_are_those_of_the_seed_and_leave_the_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    once, again, other = (pretrained.load(SMALL, "random", seed=seed).model for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    first, second, third = (next(iter(model.parameters())) for model in (once, again, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UserError, match=r"no network 'resnet19'.*resnet18"):
        pretrained.load("resnet19")
    with pytest.raises(UserError, match=r"no weights 'IMAGENET1K_V9'.*IMAGENET1K_V1, IMAGENET1K_V2, random"):
        pretrained.load("resnet50", "IMAGENET1K_V9")
    with pytest.raises(UserError, match=r"there is no file nowhere.pth"):
        pretrained.load("resnet50", "nowhere.pth")


def test_weights_without_a_classifier_are_not_offered():
    with pytest.raises(UserError, match=r"there are IMAGENET1K_V1, random"):
        pretrained.load("vgg16", "IMAGENET1K_FEATURES")


def test_the_classes_of_a_network_of_every_family_are_counted_from_its_weights():
    families = {re.match("[a-z]+", name)[0]: name for name in reversed(pretrained.names())}
    assert len(families) > 15
    # A RegNet computes its widths with tensors, which have no values on this device.
    families.pop("regnet")
    with torch.device("meta"):
        for name in families.values():
            weights = pretrained.build(name, classes=7, image_size=224).state_dict()
            assert pretrained.count_classes(list(weights), weights) == 7, name
    weights = pretrained.build("regnet_y_400mf", classes=7).state_dict()
    assert pretrained.count_classes(list(weights), weights) == 7


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_the_classifiers_half_way_up_are_dropped(name, tmp_path):
    path, model = saved(tmp_path / "aux.pth", name, init_weights=False, transform_input=True)
    found = pretrained.load(name, str(path)).model
    images = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(found.eval()(images), model.eval()(images))
    assert isinstance(found.train()(images.expand(2, -1, -1, -1)), torch.Tensor)


def test_a_densenet_saved_under_the_names_of_old_is_read(tmp_path):
    model = models.densenet121()
    old = {
        name.replace("norm1", "norm.1").replace("conv1", "conv.1") if "denselayer" in name else name: value
        for name, value in model.state_dict().items()
    }
    assert old.keys() != model.state_dict().keys()
    torch.save(old, tmp_path / "densenet.pth")
    found = pretrained.load("densenet121", str(tmp_path / "densenet.pth"))
    for name, value in model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value), name


def test_a_vision_transformer_for_larger_images_is_told_by_the_name_of_its_file(tmp_path, monkeypatch):
    published = models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1
    path = tmp_path / published.url.rpartition("/")[2]
    made = []

    def build(_name, **options):
        made.append(options)
        raise UserError("seen enough")

    torch.save({"head.bias": torch.zeros(1000)}, path)
    monkeypatch.setattr(pretrained, "build", build)
    with pytest.raises(UserError, match="seen enough"):
        pretrained.load("vit_b_16", str(path))
    assert made == [{"image_size": 384}]


def test_preprocessing_is_that_of_the_weights():
    found = pretrained.load("squeezenet1_1", "random").preprocessing
    assert (found.size, found.resize, found.interpolation) == (224, 256, "bilinear")
    assert found.mean == (0.485, 0.456, 0.406)
