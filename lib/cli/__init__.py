"""Command lines of the scripts: the parser, the exit statuses, types of flags, and shared groups of flags."""

from lib.cli.comparison_flags import add_comparison_flags
from lib.cli.exits import run
from lib.cli.explanation_flags import add_explanation_flags, add_method_options, add_smoothing_flags
from lib.cli.flags import (
    add_config_flags,
    add_network_option_flags,
    add_run_flags,
    add_training_flags,
    add_view_flags,
    describe_recipes,
)
from lib.cli.image_flags import (
    add_augmentation_flags,
    add_dataset_flags,
    add_input_flags,
    add_list_models_flag,
    add_thumbnail_flag,
    add_window_flag,
)
from lib.cli.own_network_flags import add_own_network_flags
from lib.cli.parser import CommandLine, Group, Parser
from lib.cli.reconstruction_flags import (
    add_latent_view_flags,
    add_reconstruction_data_flags,
    add_variational_flags,
)
from lib.cli.scope import Flag, Scope
from lib.cli.segmentation_flags import (
    add_masked_set_flags,
    add_segmentation_flags,
    add_segmented_input_flags,
)
from lib.cli.types import integer, nonempty_text, number, subset_of

__all__ = [
    "CommandLine",
    "Flag",
    "Group",
    "Parser",
    "Scope",
    "add_augmentation_flags",
    "add_comparison_flags",
    "add_config_flags",
    "add_dataset_flags",
    "add_explanation_flags",
    "add_input_flags",
    "add_latent_view_flags",
    "add_list_models_flag",
    "add_masked_set_flags",
    "add_method_options",
    "add_network_option_flags",
    "add_own_network_flags",
    "add_reconstruction_data_flags",
    "add_run_flags",
    "add_segmentation_flags",
    "add_segmented_input_flags",
    "add_smoothing_flags",
    "add_thumbnail_flag",
    "add_training_flags",
    "add_variational_flags",
    "add_view_flags",
    "add_window_flag",
    "describe_recipes",
    "integer",
    "nonempty_text",
    "number",
    "run",
    "subset_of",
]
