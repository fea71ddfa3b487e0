"""Targets of an area: their mathematics, their peer, and the scripts that explain segmentations."""

import json

import numpy as np
import pytest
import torch
from conftest import call
from PIL import Image
from torch import nn

from lib import models
from lib.data.preprocessing import Preprocessing
from lib.explain import areas, gradients
from lib.explain.areas import Region, area_of, class_area_target, output_area_target, region_of
from lib.explain.explanation import Request
from lib.explain.methods import METHODS
from lib.explain.placement import places_of
from lib.explain.targets import class_target, scores_of
from lib.models.fcn import FCN
from lib.models.network import Network, load_pretrained
from lib.runtime import checkpoint
from lib.runtime.errors import UserError

CLASSES = ("ground", "circle", "square")


def segmenter(encoder: str = "alexnet", finest: int = 8) -> FCN:
    torch.manual_seed(0)
    return FCN(3, encoder=encoder, finest=finest).eval().requires_grad_(False)


def images(size: tuple[int, int] = (96, 128)) -> torch.Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))


def box(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = (96, 128)) -> torch.Tensor:
    area = torch.zeros(size, dtype=torch.bool)
    area[top:bottom, left:right] = True
    return area


def signed_map(model: nn.Module, layer: str, area: torch.Tensor) -> torch.Tensor:
    """Return the map of Grad-CAM before its ReLU, as the difference of those for and against the target."""
    target = class_area_target(1, area)
    found = [
        gradients.grad_cam(model, [layer], images(), scores_of([each])).maps[layer]
        for each in (target, -target)
    ]
    return found[0] - found[1]


def test_area_grad_cam_is_that_of_pytorch_grad_cam():
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget

    model, area = segmenter().requires_grad_(True), box(20, 30, 70, 90)
    with GradCAM(model, [model.encoder[11]]) as peer:
        wanted = peer(images(), [SemanticSegmentationTarget(1, area.numpy().astype(np.float32))])[0]
    found = gradients.grad_cam(model, ["encoder.11"], images(), scores_of([class_area_target(1, area)]))
    raw = found.maps["encoder.11"][0, 0]
    # The peer scales a map to [0, 1], enlarges it by OpenCV, and scales it once more.
    drawn = (raw - raw.min()) / (1e-7 + (raw - raw.min()).max())
    drawn = gradients.upsample(drawn, (96, 128))
    drawn = (drawn - drawn.min()) / (1e-7 + (drawn - drawn.min()).max())
    assert np.abs(drawn.numpy() - wanted).max() < 1e-5


def test_maps_of_disjoint_areas_add_up_to_the_map_of_their_union():
    model = segmenter()
    one, two = box(0, 0, 50, 60), box(50, 20, 96, 128)
    parts = [signed_map(model, "encoder.11", area) for area in (one, two)]
    whole = signed_map(model, "encoder.11", one | two)
    assert torch.allclose(sum(parts), whole, atol=1e-6 * float(whole.abs().max()) + 1e-9)
    assert whole.abs().max() > 0


class Pooled(nn.Module):
    """A classifier that can also answer with a map of one pixel."""

    def __init__(self, *, dense: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.head = nn.Conv2d(8, 3, 1)
        self.dense = dense

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(self.conv(x).relu().mean((2, 3), keepdim=True))
        return y if self.dense else y.flatten(1)


@pytest.mark.parametrize("kind", ["logit", "log-odds", "probability"])
def test_the_score_of_a_class_is_that_of_an_area_of_one_pixel(kind):
    one = torch.ones(1, 1)
    found = [
        gradients.grad_cam(Pooled(dense=dense), ["conv"], images(), scores_of([target])).maps["conv"]
        for dense, target in ((True, class_area_target(2, one, kind)), (False, class_target(2, kind)))
    ]
    assert torch.allclose(*found, atol=1e-7)
    assert found[0].any()


def receptive_field(rows: tuple[int, int]) -> tuple[int, int]:
    """Return first and last row of the image that rows of the logits of AlexNet's first pooling may see."""
    first, last = rows
    # FCN-8s enlarges by 16-pixel kernels, and adds maps of coarser strides: the receptive field of the last.
    reach = 195 + 32 + 32  # AlexNet's last pooling sees 195 pixels; two doublings and one enlargement
    return first - reach, last + reach


def test_the_gradient_of_an_area_is_zero_outside_of_its_receptive_field():
    model, size = segmenter(), (64, 960)
    area = box(0, 0, 64, 8, size)
    source = images(size)
    found = gradients.input_gradients(model, source, scores_of([class_area_target(1, area)])).values[0, 0]
    last = receptive_field((0, 7))[1]
    assert not found[..., last + 1 :].any()
    assert found[..., : last - 150].any()


def test_areas_are_found_in_outputs():
    output = torch.zeros(1, 3, 4, 5)
    output[0, 1, 1:3] = 1
    assert int(area_of(Region("prediction"), 1, output).sum()) == 10
    assert area_of(Region("all"), 0, output).all()
    truth = torch.full((4, 5), 2)
    assert area_of(Region("truth"), 2, output, truth).all()
    pixel = area_of(region_of("3,4", None), 0, output)
    assert pixel.nonzero().tolist() == [[3, 4]]
    assert areas.bounds(area_of(region_of(None, (1, 0, 3, 2)), 0, output)) == [1, 0, 3, 2]
    assert region_of(None, None).kind == "prediction"
    for region in (Region("box", (0, 0, 5, 5)), Region("truth")):
        with pytest.raises(UserError, match=r"not within the output|--mask"):
            area_of(region, 0, output)
    for wrong in (("here", None), ("box", None), ("all", (0, 0, 1, 1)), ("1,2,3", None)):
        with pytest.raises(UserError, match="--region"):
            region_of(*wrong)


def test_targets_say_what_does_not_fit():
    output = torch.zeros(1, 3, 4, 5)
    with pytest.raises(UserError, match="no class 3"):
        class_area_target(3, torch.ones(4, 5)).score(output)
    with pytest.raises(UserError, match="does not fit"):
        class_area_target(0, torch.ones(5, 4)).score(output)
    with pytest.raises(UserError, match="no score"):
        class_area_target(0, torch.ones(4, 5), "logits")


def test_the_area_of_an_image_is_the_sum_of_its_pixels():
    output, area = torch.rand(2, 1, 4, 5), torch.zeros(4, 5)
    area[1:3, 2] = 0.5
    found = output_area_target(area).score(output)
    assert torch.allclose(found, output[:, 0, 1:3, 2].sum(1) / 2)
    assert areas.share_inside(torch.ones(3, 4, 5), area > 0) == pytest.approx(2 / 20)


def network() -> Network:
    how = Preprocessing(48, 3, (0.5,) * 3, (0.25,) * 3, native=True)
    torch.manual_seed(0)
    return Network(models.build("small", classes=3, width=4), CLASSES, how, "small", dense=True)


@pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in ("shapley", "integrated-gradients")]
)
def test_every_method_explains_an_area(name):
    area = box(8, 8, 20, 30, (32, 48))
    pixels = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    target = class_area_target(1, area, name="circle")
    found = METHODS[name].explain(Request(network(), pixels, [target]))
    (maps,) = found.maps((32, 48)).values()
    assert maps.shape == (1, 1, 32, 48)
    assert found.output.shape == (1, 3, 32, 48)


def test_integrated_gradients_and_shapley_values_of_an_area_add_up_to_its_score():
    area = box(8, 8, 20, 30, (32, 48))
    pixels = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    target = class_area_target(1, area)
    net = network()
    for name, settings in (("integrated-gradients", {"steps": 200}), ("shapley", {"budget": 600})):
        baseline = torch.full_like(pixels, 0.5)
        found = METHODS[name].explain(Request(net, pixels, [target], baseline=baseline, settings=settings))
        score = target.score(net.logits(pixels)) - target.score(net.logits(baseline))
        total = float(found.values[""].double().flatten(2).sum())
        assert total == pytest.approx(float(score), rel=0.02), name


def test_the_cells_of_the_small_networks_maps_have_their_places():
    place = places_of(network(), ["stage8"], (32, 48))["stage8"]
    assert place.rows.stride == 8


def test_torchvisions_segmentation_networks_are_loaded_by_name():
    found = load_pretrained("lraspp_mobilenet_v3_large", "random")
    assert found.dense
    assert found.classes[15] == "person"
    with torch.no_grad():
        assert found.logits(torch.rand(1, 3, 32, 48)).shape == (1, 21, 32, 48)


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    """A folder with the checkpoint of an untrained network, an image, and its true mask."""
    folder = tmp_path_factory.mktemp("segmented")
    net = network()
    content = {
        "task": "segmentation",
        "model": {"name": "small", "config": {"classes": 3, "channels": 3, "width": 4, "dropout": 0.1}},
        "classes": list(CLASSES),
        "preprocessing": net.preprocessing.as_dict(),
        "flags": {},
        "state_dict": net.module.state_dict(),
    }
    checkpoint.save(folder / "net.pt", content)
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "street.png")
    mask = np.zeros((32, 48), np.uint8)
    mask[10:20, 10:30] = 2
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


FLAGS = ("--restore-file", "net.pt", "--input", "street.png", "--threads", "1")


@pytest.mark.parametrize(
    ("script", "more"),
    [
        ("run-grad-cam.py", ("--region", "truth", "--mask", "mask.png", "--target", "square")),
        ("run-grad-cam.py", ("--area", "2,3,12,20", "--target", "1", "--guided")),
        ("run-integrated-gradients.py", ("--region", "all", "--steps", "4", "--target", "circle")),
        ("run-shapley-value.py", ("--region", "3,4", "--patch-side-len", "16", "--target", "circle")),
    ],
)
def test_scripts_explain_an_area_of_a_segmentation(segmented, tmp_path, script, more):
    done = call(script, *FLAGS, *more, "--json", tmp_path / "r.json", "--out-dir", tmp_path, folder=segmented)
    assert (done.status, done.stderr) == (0, "")
    records = json.loads((tmp_path / "r.json").read_text())
    assert all(" in " in record["class"] for record in records)
    assert all(0 < record["probability"] < 1 for record in records)
    assert list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--area", "0,0,33,48", "--target", "circle"), "not within the output of 32×48"),
        (("--region", "nowhere"), "choose from box, prediction, truth, all"),
        (("--region", "truth"), "--region truth and --mask FILE go with each other"),
        (
            ("--region", "truth", "--mask", "mask.png", "--target", "circle"),
            "no pixel of circle in its truth",
        ),
        (("--unit", "1"), "--unit goes with autoencoders alone"),
    ],
)
def test_an_area_that_is_not_there_is_one_line(segmented, tmp_path, flags, message):
    done = call("run-grad-cam.py", *FLAGS, *flags, "--out-dir", tmp_path, folder=segmented)
    assert done.status == 2
    assert done.is_one_line_error(), done.stderr
    assert message in done.stderr
    assert not list(tmp_path.iterdir())
