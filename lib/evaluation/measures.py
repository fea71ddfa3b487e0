"""The table of measures of explanations: what each measures, where it is from, and what it does not show.

The comparison's flags, tables and pages are made from it. It imports no torch, because `--help` reads it.
"""

from typing import NamedTuple


class Measure(NamedTuple):
    """An entry of the table.

    Attributes:
        name: name in records and on the command line.
        title: heading of its column.
        paper: its source.
        larger_is_better: its direction.
        reads: one sentence that says how to read the number.
        weakness: one sentence that says what it does not show.
        best, worst: values of a perfect map and of one that knows nothing, as text.
        ranked: whether methods are ranked by it, and compared with controls.
        some: why some images have no number, as the end of a sentence.
        of_boxes: whether it needs the box of the object.
    """

    name: str
    title: str
    paper: str
    larger_is_better: bool
    reads: str
    weakness: str
    best: str = "1"
    worst: str = "0"
    ranked: bool = True
    some: str = "not defined where removals do not change the score"
    of_boxes: bool = False


_NOTHING_TO_REMOVE = "not defined where an image scores no higher than with all its parts removed"
_PROBED = "asked of the first images alone (`--probed`), and of methods of few passes"

_TABLE = (
    Measure(
        "agreement",
        "agreement with Shapley values",
        "Shapley 1953; Lundberg & Lee 2017, arXiv:1705.07874",
        True,
        "Rank correlation of the map, summed over coarse patches, with the patches' Shapley values.",
        "The values are true of the game of removing patches with this baseline, and of no other question.",
    ),
    Measure(
        "top-share",
        "share of the best patches",
        "Shapley 1953; Lundberg & Lee 2017, arXiv:1705.07874",
        True,
        "Share of the total of the positive Shapley values that the map's best quarter of the patches holds.",
        "Says nothing of the order among these patches, nor of evidence against the class.",
        worst="about 0.25; below 0: the patches speak against the class",
        some="not defined where no patch has a positive Shapley value",
    ),
    Measure(
        "deletion",
        "deletion",
        "Petsiuk et al. 2018, arXiv:1806.07421",
        False,
        "Area under the score, 1 with all parts and 0 with none, as the strongest pixels are removed first.",
        "No network knows images with holes; a map may gain because its holes fool the network.",
        best="0 or less",
        worst="about 0.5",
        some=_NOTHING_TO_REMOVE,
    ),
    Measure(
        "insertion",
        "insertion",
        "Petsiuk et al. 2018, arXiv:1806.07421",
        True,
        "Area under the same score as the strongest pixels are shown first, all others being removed.",
        "Favours maps of connected areas; like deletion it leaves the distribution of images.",
        best="1 or more",
        worst="about 0.5",
        some=_NOTHING_TO_REMOVE,
    ),
    Measure(
        "f-fidelity",
        "F-Fidelity",
        "Zheng et al. 2024, arXiv:2410.02970",
        True,
        "How much more of the score is lost if some of the map's best quarter is removed, not of the rest.",
        "The paper first trains the network further on masked images; here that is up to its owner (erase).",
        best="above 0",
        some=_NOTHING_TO_REMOVE,
    ),
    Measure(
        "single-deletion",
        "single deletion",
        "Hesse et al. 2024, arXiv:2407.11910",
        True,
        "Rank correlation of the map's patches with the score's drop when each patch alone is black.",
        "In distribution (IDSDS) only if the network was trained with masked patches; blind to redundancy.",
    ),
    Measure(
        "sensitivity-n",
        "sensitivity-n",
        "Ancona et al. 2018, arXiv:1711.06104",
        True,
        "Correlation of the map's sum over random patches with the score's drop without them.",
        "Says nothing of the map's scale; large sets of removed patches leave the distribution.",
    ),
    Measure(
        "infidelity",
        "infidelity",
        "Yeh et al. 2019, arXiv:1901.09392",
        False,
        "Share of the drops by random squares that the best positive multiple of the map leaves unexplained.",
        "Depends on how the squares are drawn; the largest drops count most.",
        best="0",
        worst="1",
    ),
    Measure(
        "max-sensitivity",
        "max-sensitivity",
        "Yeh et al. 2019, arXiv:1901.09392",
        False,
        "Largest relative change of the map when the image changes by noise that no eye sees.",
        "Not a measure of truth: a map that ignores the network never changes, and is best.",
        best="0",
        worst="none",
        ranked=False,
        some=_PROBED,
    ),
    Measure(
        "randomisation",
        "random weights",
        "Adebayo et al. 2018, arXiv:1810.03292; Hedström et al. 2024, arXiv:2401.06465",
        False,
        "Rank correlation with the map of the network with random weights; it passes below 0.5.",
        "Pass or fail, no score: grainy maps pass whatever they show.",
        best="below 0.5",
        worst="1",
        ranked=False,
        some=_PROBED,
    ),
    Measure(
        "randomisation-smooth",
        "random weights, smoothed",
        "Hedström et al. 2024, arXiv:2401.06465",
        False,
        "The same for maps that are averaged over noisy images, which are less grainy; it passes below 0.5.",
        "Pass or fail, no score: an architecture's own pattern may stay in both maps.",
        best="below 0.5",
        worst="1",
        ranked=False,
        some=_PROBED,
    ),
    Measure(
        "completeness",
        "completeness",
        "Sundararajan et al. 2017, arXiv:1703.01365",
        False,
        "How far the map's sum misses the difference of scores that the method promises, as a share of it.",
        "Only of methods that promise it; a complete map may lie anywhere.",
        best="0",
        worst="none",
        ranked=False,
        some="promised by some methods alone",
    ),
    Measure(
        "pointing",
        "pointing game",
        "Zhang et al. 2016, arXiv:1608.00507",
        True,
        "Share of images whose strongest pixel lies in the box.",
        "One pixel decides, and a network may rightly look beside the object.",
        some="the others have no box in what the network sees",
        of_boxes=True,
    ),
    Measure(
        "mass",
        "mass in the box",
        "Arras et al. 2022, arXiv:2003.07258; Wang et al. 2020, arXiv:1910.01279",
        True,
        "Share of the map's positive values in the box (energy-based pointing game).",
        "Large boxes are easy, and a network may rightly look beside the object.",
        some="the others have no box in what the network sees",
        of_boxes=True,
        worst="the box's share of the image",
    ),
    Measure(
        "rank",
        "rank in the box",
        "Arras et al. 2022, arXiv:2003.07258",
        True,
        "Share of the box's K pixels among the map's K strongest.",
        "Large boxes are easy, and a network may rightly look beside the object.",
        some="the others have no box in what the network sees",
        of_boxes=True,
        worst="the box's share of the image",
    ),
)

MEASURES: dict[str, Measure] = {each.name: each for each in _TABLE}

# Control maps, by name: heading of the row.
CONTROLS = {
    "control-noise": "uniform noise",
    "control-edges": "Sobel edges",
    "control-centre": "centred Gaussian",
    "control-other": "map of another image",
    "control-random": "map with random weights",
}
PASSES_BELOW = 0.5  # rank correlation with the map of random weights
