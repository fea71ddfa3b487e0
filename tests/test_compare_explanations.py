"""compare-explanations.py from flags to tables: kept results, resumption, ranks, the page, refusals."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import call, explaining
from fuzz import Damage, boxes_door
from PIL import Image
from test_distributed import torchrun

from lib.data.boxes import ObjectBox, box_in_input, read_boxes
from lib.data.fitting import Box, Original
from lib.data.image_inputs import ImageInput
from lib.evaluation.measures import CONTROLS, MEASURES
from lib.tasks import comparison_maps, comparison_measures
from lib.tasks.comparison_store import Store

SCRIPT = "compare-explanations.py"
FEW = (
    *("--input", "digits:7", "digits:12", "--grid", 2, "--budget", 16, "--steps", 2, "--probed", 1),
    *("--methods", "grad-cam", "input-x-gradient"),
)
TABLE = "comparison/comparison.md"
explain = explaining(SCRIPT)


@pytest.fixture
def compare(explain, subject_folder):
    """Compare two cheap methods on two digits; write the table alone."""
    return lambda *flags: explain(
        "--restore-file", subject_folder / "own.pt", *FEW, "--format", "md", *flags, own=False
    )


@pytest.fixture
def made(monkeypatch):
    """Names of the methods whose maps are computed, and `shared` for what maps of an image share."""
    names = []
    of_method, shared = comparison_maps.of_method, comparison_measures.shared

    def noted(question, method, *rest, **more):
        names.append(method)
        return of_method(question, method, *rest, **more)

    def noted_shared(*arguments):
        names.append("shared")
        return shared(*arguments)

    monkeypatch.setattr(comparison_maps, "of_method", noted)
    monkeypatch.setattr(comparison_measures, "shared", noted_shared)
    return names


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells of the table of means, by the heading of their row."""
    lines = text.partition("| method |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return {first.strip("*"): others for first, *others in cells}


def test_the_same_command_computes_nothing_and_another_method_only_itself(compare, made, tmp_path):
    assert compare("--json", "r.json").status == 0
    assert sorted(made) == [
        "grad-cam",
        "grad-cam",
        "input-x-gradient",
        "input-x-gradient",
        "shared",
        "shared",
    ]
    table = (tmp_path / TABLE).read_bytes()
    rows = rows_of(table.decode())
    assert list(rows) == ["Grad-CAM", "input × gradient", *CONTROLS.values()]
    records = json.loads((tmp_path / "r.json").read_text())
    values = [r["agreement"] for r in records if r["method"] == "input-x-gradient"]
    assert float(rows["input × gradient"][0].split()[0].replace("−", "-")) == pytest.approx(
        np.mean(values), abs=0.006
    )
    del made[:]
    assert compare("--json", "r.json").status == 0
    assert made == []
    assert (tmp_path / TABLE).read_bytes() == table
    assert compare("--methods", "grad-cam", "input-x-gradient", "layer-cam").status == 0
    assert made == ["layer-cam"] * 2


@pytest.mark.parametrize("damage", [b"\xff\x00", None])
def test_a_damaged_result_is_told_of_and_computed_again(compare, made, tmp_path, damage):
    assert compare().status == 0
    table = (tmp_path / TABLE).read_bytes()
    del made[:]
    for path in (tmp_path / "comparison" / "kept").rglob("*.json"):
        content = path.read_bytes()
        path.write_bytes(content.replace(b"0.", b"1.", 1) if damage is None else damage)
    done = compare()
    assert done.status == 0
    assert len(made) == 6
    assert re.search("warning: the kept result .* is damaged: it is computed again", done.stderr)
    assert (tmp_path / TABLE).read_bytes() == table


class Killed(BaseException):
    """As a killed process does, it lets nothing be tidied up that asks for less."""


def test_a_run_that_was_killed_goes_on_where_it_was(compare, made, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        judge = comparison_measures.Judge.judge
        calls = []

        def killed(*arguments):
            calls.append(1)
            if len(calls) == 4:
                raise Killed
            return judge(*arguments)

        patch.setattr(comparison_measures.Judge, "judge", killed)
        with pytest.raises(Killed):
            compare()
    assert not (tmp_path / TABLE).exists()
    del made[:]
    assert compare().status == 0
    assert made == ["shared", "grad-cam", "input-x-gradient"]  # of the second image
    table = (tmp_path / TABLE).read_bytes()
    assert compare("--out-dir", "new", "--report", TABLE).status == 0
    assert (tmp_path / TABLE).read_bytes() == table


@pytest.mark.slow
def test_two_ranks_make_the_table_of_one(process, subject_folder, tmp_path):
    flags = ("--restore-file", subject_folder / "own.pt", *FEW, "--format", "md", "--device", "cpu")
    done = torchrun(SCRIPT, *flags, "--out-dir", "two", folder=tmp_path)
    assert done.status == 0, done.stderr
    assert process(SCRIPT, *flags, "--out-dir", "one").status == 0
    assert (tmp_path / "two" / "comparison.md").read_bytes() == (
        tmp_path / "one" / "comparison.md"
    ).read_bytes()


class Page(HTMLParser):
    """Tags that are open, attributes by tag, and the text."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_stands_alone_and_says_how_to_read_each_number(compare, tmp_path):
    done = compare("--format", "html", "--save-values", "v.npz", "--report", "page/")
    assert done.status == 0, done.stderr
    text = (tmp_path / "page" / "comparison.html").read_text()
    page = Page(text)
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe")
        assert "href" not in attributes
        if tag == "img" and attributes.get("alt"):
            assert attributes["src"].startswith("data:image/jpeg;base64,")
    assert not re.search(r"https?://|@import|url\(", text)
    figures = [attributes for tag, attributes in page.tags if tag == "figure"]
    assert len(figures) == 2 * (1 + 2 + len(CONTROLS))
    assert json.loads(figures[1]["data-numbers"])[0][0] == "agreement with Shapley values"
    for name in ("agreement", "infidelity", "randomisation"):
        assert MEASURES[name].reads in page.text
        assert MEASURES[name].weakness in page.text
    with np.load(tmp_path / "v.npz") as values:
        assert values["maps"].shape == (14, 28, 28)
        assert values["methods"][0] == "grad-cam"
    sheet = (tmp_path / "page" / "comparison.png").read_bytes()

    again = compare("--format", "html", "--report", "page/")
    assert again.status == 0
    (tmp_path / "page" / "comparison.png").write_bytes(b"")
    assert compare("--format", "html", "--report", "page/").status == 0
    assert (tmp_path / "page" / "comparison.png").read_bytes() == sheet


def test_what_removed_parts_show_is_said_and_changes_the_numbers(compare, tmp_path):
    tables = []
    for removal in ("inpaint", "mean"):
        assert compare("--removal", removal, "--measures", "deletion", "insertion").status == 0
        tables.append((tmp_path / TABLE).read_text())
    assert "Removed parts are in-painted" in tables[0]
    assert "Removed parts show its mean colour" in tables[1]
    painted, mean = map(rows_of, tables)
    assert painted["Grad-CAM"] != mean["Grad-CAM"]


def test_boxes_locate_maps(compare, tmp_path):
    (tmp_path / "boxes.json").write_text('{"digits-7": [0, 0, 28, 28]}')
    assert compare("--boxes", "boxes.json", "--measures", "mass", "pointing").status == 0
    rows = rows_of((tmp_path / TABLE).read_text())
    assert rows["input × gradient"][:2] == ["1.00", "1.00"]
    (tmp_path / "boxes.json").write_text('{"digits-7": [0, 0, 1, 1]}')
    assert compare("--boxes", "boxes.json", "--measures", "mass").status == 0
    assert float(rows_of((tmp_path / TABLE).read_text())["uniform noise"][0].split()[0]) < 0.02


@pytest.fixture
def photographs(tmp_path):
    """A folder with two photographs of noise, one of one colour, and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(random.integers(0, 255, (40, 60), dtype=np.uint8)).save(folder / f"{name}.png")
    Image.new("L", (40, 40), 128).save(folder / "plain.png")
    (folder / "torn.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_boxes_are_read_as_windows_writes_them(tmp_path, encoding):
    (tmp_path / "boxes.json").write_text('{"cat": [0, 1, 2, 3]}\r\n', encoding=encoding)
    assert read_boxes(tmp_path / "boxes.json") == {"cat": ObjectBox(0, 1, 2, 3)}


def test_a_box_that_the_network_does_not_see_is_told_of_and_left_out(compare, photographs, tmp_path):
    (tmp_path / "boxes.json").write_text('{"a.png": [0, 0, 40, 9], "b": [0, 10, 40, 50]}')
    done = compare(
        *("--input", *(photographs / f"{each}.png" for each in "ab")),
        *("--fit", "crop", "--boxes", "boxes.json", "--measures", "mass"),
    )
    assert done.status == 0, done.stderr
    assert "the box of a lies outside the part of the image that the network sees" in done.stderr
    text = (tmp_path / TABLE).read_text()
    assert "Mass in the box: 1 of 2 images, the others have no box" in text
    assert rows_of(text)["uniform noise"][0] == "1.00"


def test_bad_files_are_skipped_and_counted(compare, photographs, tmp_path):
    done = compare("--input", photographs, "--json", "r.jsonl", "--save-values", "values/")
    assert done.status == 2
    assert done.is_one_line_error()
    done = compare("--input", photographs, "--json", "r.jsonl", "--save-values", "values/", "--skip-bad")
    assert done.status == 0, done.stderr
    assert "torn.png is not an image in a known format: skipped" in done.stderr
    assert "[DONE] images=3 skipped=1 maps=21" in done.stdout
    assert "lenet5, 3 images" in (tmp_path / TABLE).read_text()
    records = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [each["image"] for each in records] == [name for name in ("a", "b", "plain") for _ in range(7)]
    assert sorted(path.name for path in (tmp_path / "values").iterdir()) == ["a.npz", "b.npz", "plain.npz"]
    with np.load(tmp_path / "values" / "b.npz") as values:
        assert list(values["names"]) == ["b"] * 7
        assert np.ptp(values["maps"][1]) > 0
    done = compare("--input", photographs / "torn.png", "--skip-bad")
    assert done.status == 2
    assert "none of the images can be read" in done.stderr


def test_an_image_of_one_colour_has_no_parts_that_matter(compare, photographs, tmp_path):
    done = compare(
        "--input", photographs / "plain.png", "--methods", "integrated-gradients", "--json", "r.json"
    )
    assert done.status == 0, done.stderr
    for record in json.loads((tmp_path / "r.json").read_text()):
        for name in ("agreement", "top-share", "deletion", "sensitivity-n", "infidelity", "max-sensitivity"):
            assert record[name] is None, (record["method"], name)
    text = (tmp_path / TABLE).read_text()
    assert "Deletion, insertion, F-Fidelity: no image, not defined where" in text


def test_the_same_picture_is_not_another_image(compare, tmp_path):
    assert compare("--input", "digits:7", "digits:7", "--measures", "agreement").status == 0
    assert CONTROLS["control-other"] not in rows_of((tmp_path / TABLE).read_text())
    assert compare("--input", "digits:7", "digits:7", "digits:12", "--measures", "agreement").status == 0
    assert CONTROLS["control-other"] in rows_of((tmp_path / TABLE).read_text())


def test_networks_of_the_same_name_are_told_apart(explain, subject_folder, tmp_path):
    own = subject_folder / "own.pt"
    done = explain("--restore-file", own, own, *FEW, "--format", "md", "--json", "r.json", own=False)
    assert done.status == 0, done.stderr
    assert {each["model"] for each in json.loads((tmp_path / "r.json").read_text())} == {
        "lenet5 (1)",
        "lenet5 (2)",
    }
    assert "## lenet5 (2), 2 images" in (tmp_path / TABLE).read_text()


def test_of_few_images_there_are_neither_intervals_nor_marks(compare, tmp_path):
    for count, there_are in ((4, False), (5, True)):
        images = [f"digits:{number}" for number in range(count)]
        assert compare("--input", *images, "--measures", "agreement").status == 0
        text = (tmp_path / TABLE).read_text()
        assert ("Of fewer than 5 images there are neither intervals nor marks." not in text) == there_are
        cells = [row[0] for row in rows_of(text).values()]
        assert all(("[" in cell) == there_are for cell in cells)


def test_damaged_files_of_boxes_are_read_or_refused_in_one_line(tmp_path):
    ended = boxes_door(tmp_path, Damage(0), 300)
    assert sum(ended.values()) == 300
    assert len(ended) == 2


def test_a_box_of_a_photograph_lies_where_the_input_shows_it():
    original = Original(np.zeros((100, 200, 3), np.uint8), Box(50, 0, 150, 100), Box(50, 0, 150, 100))
    image = ImageInput("a", np.zeros((1, 10, 10)), None, original)
    assert box_in_input(ObjectBox(20, 70, 60, 150), image) == ObjectBox(2, 2, 6, 10)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--methods", "gradcam"), "gradcam"),
        (("--study", "digits"), "--study and --input"),
        (("--images", 3), "--images goes with --study alone"),
        (("--report", "page.txt"), "ends in .md"),
        (("--boxes", "none.json"), "there is no file none.json"),
        (("--boxes", "list.json"), "is not of the form"),
        (("--boxes", "other.json"), "no image is called 'cat'"),
        (("--boxes", "wrong.json"), "that of 'digits-7' is no box"),
        (("--boxes", "outside.json"), "ends at row 200 and column 1, and the image has 28"),
        (("--boxes", "text.json"), "is not JSON"),
        (("--measures", "deletion", "mass"), "say where the objects are with --boxes"),
        (("--budget", 12, "--grid", 16), "768 or more"),
        (("--unit", 0), "not for reconstruction"),
    ],
)
def test_bad_input_is_one_line(compare, tmp_path, flags, said):
    for name, content in (
        ("list", "[1]"),
        ("other", '{"cat": [0, 0, 1, 1]}'),
        ("wrong", '{"digits-7": [0, 0, NaN, 1]}'),
        ("outside", '{"digits-7": [100, 0, 200, 1]}'),
        ("text", "no"),
    ):
        (tmp_path / f"{name}.json").write_text(content)
    done = compare(*flags)
    assert done.status == 2
    assert done.is_one_line_error(), done.stderr
    assert said in done.stderr
    assert not (tmp_path / TABLE).exists()


def test_a_study_draws_the_same_images_each_time(explain, subject_folder, tmp_path):
    few = ("--study", "digits", "--images", 3, "--methods", "grad-cam", "--measures", "single-deletion")
    tables = []
    for folder in ("a", "b"):
        done = explain(
            *("--restore-file", subject_folder / "own.pt", *few, "--format", "md", "--out-dir", folder),
            own=False,
        )
        assert done.status == 0, done.stderr
        tables.append((tmp_path / folder / "comparison.md").read_bytes())
    assert tables[0] == tables[1]
    assert "3 images of digits, drawn with the seed 42" in tables[0].decode()


def test_maps_that_change_on_the_disk_are_found_out(tmp_path):
    store = Store(tmp_path)
    maps = np.arange(12.0, dtype=np.float32).reshape(1, 3, 4)
    store.save("ab", {"numbers": [1]}, maps)
    assert np.array_equal(store.find("ab", with_maps=True)["maps"], maps)
    (file,) = tmp_path.rglob("*.npz")
    with file.open("wb") as other:
        np.savez_compressed(other, maps=maps + 1)
    assert store.find("ab", with_maps=True) is None
    assert store.damaged == 1
    assert store.find("ab") == {"numbers": [1], "sha256_of_maps": store.find("ab")["sha256_of_maps"]}
    store.save("cd", {"numbers": [2]})
    assert store.find("cd", with_maps=True) is None
    assert store.damaged == 1


def test_a_method_that_does_not_suit_a_network_is_left_out_with_a_warning(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\nSIZE, MEAN, STD = 12, 0.0, 1.0\n"
        "def make(): return nn.Sequential(nn.Conv2d(3, 2, 3), nn.SiLU(), nn.Flatten(), nn.Linear(200, 3))\n"
    )
    from PIL import Image

    Image.new("RGB", (12, 12), (200, 90, 10)).save(tmp_path / "a.png")
    flags = (
        "--network",
        "net.py:make",
        "--input",
        "a.png",
        "--methods",
        "guided",
        "grad-cam",
        "--format",
        "md",
    )
    done = call(SCRIPT, *flags, folder=tmp_path)
    assert done.status == 0, done.stderr
    assert "guided backprop is left out for make" in done.stderr
    assert "map of another image" not in (tmp_path / TABLE).read_text()
