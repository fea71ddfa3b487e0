"""Networks of the user's own (`--network`) in the scripts that classify images."""

from torch import nn

from lib.data.images import ImageData
from lib.models import own_network
from lib.models.layers import format_table, table
from lib.models.own_network import OwnNetwork
from lib.tasks import image_data
from lib.training.run import TrainingRun


def load(run: TrainingRun, settings: image_data.DataSettings) -> tuple[nn.Module, ImageData]:
    """Return the user's own network, and the images that the flags name, prepared for it.

    Raises:
        UserError: as `lib.models.own_network.load` and `lib.tasks.image_data.load_for` do.
    """
    network = own_network.load(_description(run), run.device)
    if not run.flags["predict_only"]:
        for line in format_table(table(network.module, network.example)):
            run.log.text("MODEL", line)
    return network.module, image_data.load_for(run, settings, network)


def _description(run: TrainingRun) -> OwnNetwork:
    """Return the flags that describe the network. A default, which is that of other networks, is left out."""

    def typed(name: str):
        return run.flags[name] if run.is_typed(name) else None

    ends = {name: (value,) if isinstance(value := typed(name), float) else value for name in ("mean", "std")}
    return OwnNetwork(
        network=run.flags["network"],
        network_args=run.flags["network_args"],
        weights=run.flags["weights"],
        classes=",".join(run.flags["classes"]) or None,
        size=typed("size"),
        channels=run.flags["channels"],
        mean=ends["mean"],
        std=ends["std"],
    )
