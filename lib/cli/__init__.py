"""Command lines of the scripts: the parser, the exit statuses, types of flags, and shared groups of flags."""

from lib.cli.flags import (
    add_augmentation_flags,
    add_dataset_flags,
    add_explanation_flags,
    add_input_flags,
    add_list_models_flag,
    add_network_option_flags,
    add_run_flags,
    add_smoothing_flags,
    add_thumbnail_flag,
    add_training_flags,
    add_view_flags,
    add_window_flag,
    check_needs,
    describe_recipes,
)
from lib.cli.parser import Parser, integer, names_of, number, run, words

__all__ = [
    "Parser",
    "add_augmentation_flags",
    "add_dataset_flags",
    "add_explanation_flags",
    "add_input_flags",
    "add_list_models_flag",
    "add_network_option_flags",
    "add_run_flags",
    "add_smoothing_flags",
    "add_thumbnail_flag",
    "add_training_flags",
    "add_view_flags",
    "add_window_flag",
    "check_needs",
    "describe_recipes",
    "integer",
    "names_of",
    "number",
    "run",
    "words",
]
