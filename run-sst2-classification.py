#!/usr/bin/env python3
"""Classify the sentiment of phrases from film reviews, with an LSTM trained from scratch on SST-2.

run-sst2-classification.py --dataset tiny                        train on a tiny set, without a download
run-sst2-classification.py | tee -a logs/sst2.log                train on SST-2 and keep the log
run-sst2-classification.py --resume                              continue a run that was stopped
run-sst2-classification.py --eval-only --restore-file CKPT       evaluate, and draw what the network learnt
echo "a joy" | run-sst2-classification.py --predict-only --restore-file CKPT --input -
run-sst2-classification.py --explain "a joy" --restore-file CKPT what each word contributes
torchrun --nproc-per-node 2 run-sst2-classification.py …         train on several devices
"""

from typing import Any

from lib import cli, models

TASK = "text-classification"

# The best training settings found for each model on held-out training sentences. Typed flags override them.
RECIPES: dict[str, dict[str, Any]] = {
    "lstm": {
        "ngrams": ("3", "4", "5"),
        "word_dropout": 0.2,
        "bigram_dropout": 0.3,
        "embedding_dropout": 0.5,
        "recurrent_dropout": 0.3,
        "head_dropout": 0.5,
        "phrase_swap": 0.5,
        "neutral_words": 0.3,
        "batch_size": 128,
        "learning_rate": 0.005,
        "max_epoch": 4,
        "optimizer": "adamw",
        "beta2": 0.98,
        "schedule": "one-cycle",
        "warmup": 0.1,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "label_smoothing": 0.05,
    },
    "plain": {
        "ngrams": (),
        "word_dropout": 0.0,
        "embedding_dropout": 0.5,
        "recurrent_dropout": 0.0,
        "head_dropout": 0.3,
        "phrase_swap": 0.0,
        "neutral_words": 0.0,
        "batch_size": 128,
        "learning_rate": 0.001,
        "max_epoch": 3,
        "optimizer": "adamw",
        "schedule": "one-cycle",
        "warmup": 0.1,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "label_smoothing": 0.0,
    },
}
ON_TINY: dict[str, dict[str, Any]] = {
    "lstm": {"batch_size": 16, "max_epoch": 30, "learning_rate": 0.002, "bigrams": 1024},
    "plain": {"batch_size": 16, "max_epoch": 30},
}


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="run-sst2-classification.py",
        description=__doc__,
        epilog=cli.describe_recipes(
            {model: models.option_defaults(model) | recipe for model, recipe in RECIPES.items()}
            | {f"{model} with --dataset tiny": changes for model, changes in ON_TINY.items()}
        ),
    )
    what = cli.add_run_flags(parser)
    what.add(
        "--explain",
        type=cli.nonempty_text,
        metavar="TEXT",
        help="show how much each word of a text contributes to the prediction",
    )
    add_data_flags(parser)
    add_network_flags(parser)
    add_regularisation_flags(parser)
    add_learning_flags(parser)
    cli.add_training_flags(parser, "the recipe of the model", ("adamw", "adam", "sgd"))
    add_prediction_flags(parser)
    cli.add_view_flags(parser)
    return parser


def add_data_flags(parser: cli.Parser) -> None:
    add = parser.group("data", cli.Scope.DATA).add
    add("--dataset", choices=("sst2", "tiny"), default="sst2", help="the data set; tiny needs no download")
    add(
        "--data-dir",
        default="data",
        metavar="DIR",
        is_path=True,
        help="folder with SST-2/*.tsv; missing files are downloaded from the Hub",
    )
    for name, split in (("train", "training"), ("valid", "validation"), ("test", "test")):
        text = f"your own {split} split: .tsv, .csv, .json, .jsonl or .parquet, with named columns; also .gz"
        add(f"--{name}-file", metavar="FILE", is_path=True, help=text)
    for name in ("text", "label"):
        add(
            f"--{name}-column",
            type=cli.nonempty_text,
            metavar="NAME",
            help=f"name of the column of {name}s in files; default: the first of the usual names, e.g. "
            f"{'sentence or text' if name == 'text' else 'label'}",
        )
    add("--limit", type=cli.integer(2), metavar="N", help="train on a fixed subset of N phrases")
    add(
        "--holdout",
        type=cli.number(0, 0.9),
        default=0.0,
        metavar="X",
        help="validate on this share of the training sentences, and evaluate the official split once at "
        "the end",
    )


def add_network_flags(parser: cli.Parser) -> None:
    add = parser.group("network (the recipe of the model where no default is shown)", cli.Scope.NETWORK).add
    add("--model", choices=tuple(RECIPES), default="lstm", help="the network; its recipe is shown below")
    add(
        "--ngrams",
        type=cli.subset_of(*"23456"),
        metavar="N,…",
        help="lengths of the character n-grams of words, or none",
    )
    add(
        "--cell",
        choices=("fused", "reference"),
        default="fused",
        scope=cli.Scope.MACHINE,
        help="the LSTM: fused is fast, reference follows the equations",
    )
    cli.add_network_option_flags(parser, models.options(tuple(RECIPES)).values())
    parser.rename("--pool", "--pooling")


def add_regularisation_flags(parser: cli.Parser) -> None:
    add = parser.group("regularisation (the recipe of the model)", cli.Scope.TRAINING).add
    share = cli.number(0, 0.95)
    add(
        "--word-dropout",
        type=share,
        metavar="X",
        help="share of words whose own vectors are replaced by the unknown word's; n-grams stay",
    )
    add("--bigram-dropout", type=share, metavar="X", help="dropout on the vectors of word pairs")
    add("--embedding-dropout", type=share, metavar="X", help="dropout on the inputs of the LSTM layers")
    add("--recurrent-dropout", type=share, metavar="X", help="DropConnect on the recurrent weights")
    add("--head-dropout", type=share, metavar="X", help="dropout on the features")
    add(
        "--phrase-swap",
        type=cli.number(0, 1),
        metavar="X",
        help="probability that a part of a phrase is exchanged for another of its label",
    )
    add(
        "--r-drop",
        type=cli.number(0),
        default=0.0,
        metavar="X",
        help="weight of the KL term between two dropout passes (R-Drop); training takes twice as long",
    )
    add(
        "--neutral-words",
        type=cli.number(0),
        metavar="X",
        help="weight of a loss that teaches that words are neutral if the corpus never labels them alone",
    )


def add_learning_flags(parser: cli.Parser) -> None:
    add = parser.group("what is learnt from, and what is kept", cli.Scope.TRAINING).add
    add("--max-tokens", type=cli.integer(1), default=8192, metavar="N", help="most words per update")
    add(
        "--keep",
        choices=("best", "last"),
        help="weights to keep; default: best if there is a hold-out, otherwise last",
    )
    add(
        "--teacher",
        metavar="CKPT",
        fixed=True,
        help="distil this network or ensemble: learn its predictions as well as the labels",
    )
    add(
        "--teacher-weight",
        only_with="teacher",
        type=cli.number(0, 1),
        default=0.5,
        metavar="X",
        help="weight of the teacher's predictions",
    )
    add(
        "--ensemble",
        type=cli.integer(1),
        default=1,
        metavar="N",
        help="train N networks with different seeds and average their predictions",
    )


def add_prediction_flags(parser: cli.Parser) -> None:
    add = parser.group("with --predict-only", cli.Scope.MODE, only_with="predict_only").add
    add(
        "--input",
        type=cli.nonempty_text,
        metavar="TEXT|FILE|-",
        help="a phrase, a file of phrases, or - for standard input",
    )
    add("--format", choices=("tsv", "jsonl"), default="tsv", help="format of the predictions")
    add("--glue", action="store_true", help="write a GLUE submission instead")


def recipe(flags) -> dict:
    chosen_on_validation = flags.holdout or flags.valid_file
    keep = {"keep": "best" if chosen_on_validation else "last"}
    chosen = (
        models.option_defaults(flags.model)
        | RECIPES[flags.model]
        | keep
        | (ON_TINY[flags.model] if flags.dataset == "tiny" else {})
    )
    # Words that are never labelled on their own were found to be neutral only in the whole of SST-2.
    whole_sst2 = flags.dataset == "sst2" and not (flags.train_file or flags.limit)
    return chosen if whole_sst2 else chosen | {"neutral_words": 0.0}


def main(argv=None) -> None:
    line = make_parser().parse(argv)
    from lib.tasks import inspection, text_data, text_explanation, text_prediction, text_views
    from lib.tasks import text_classification as task
    from lib.training import run as training

    with training.start(TASK, line, recipe) as run:
        network = task.NetworkSettings.of(run.flags)
        source = text_data.DataSettings.of(run.flags)
        if run.flags["predict_only"] or run.flags["explain"]:
            reader = text_data.Reader.of(run, source)
            model = task.build(run, reader, network)
            if run.flags["explain"]:
                asked = text_explanation.ExplanationSettings.of(run.flags)
                text_explanation.explain(run, model, reader, asked)
            else:
                settings = text_prediction.PredictionSettings.of(run.flags)
                text_prediction.predict(run, model, reader, settings, source)
            return
        data = text_data.load(source)
        text_data.describe(run, data)
        reader = text_data.Reader.of(run, source, data)
        if run.flags["eval_only"]:
            model = task.build(run, reader, network)
            text_views.look_inside(run, model, data, reader, inspection.ViewSettings.of(run.flags))
        else:
            model = task.fit(run, data, reader, network, task.LearningSettings.of(run.flags))
            task.report(run, model, data, reader)


if __name__ == "__main__":
    cli.run(main)
