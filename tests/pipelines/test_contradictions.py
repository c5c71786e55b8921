"""Flags that contradict each other are refused before anything is loaded, and both are named."""

import pytest

from pipelines import classify, finetune, train
from pipelines.common.fields import MOST_USED
from pipelines.common.flags import JobParser
from transforms.core.errors import ImagebeamError

EPOCHS = [
    "--hidden_units 8",
    "--normalization batch",
    "--epochs 3",
    "--batch_size 8",
    "--learning_rate 0.1",
    "--learning_rate_schedule cosine",
    "--weight_decay 0.1",
    "--label_smoothing 0.1",
    "--patience 3",
    "--search",
    "--multi_label",
]
TRAIN = [
    *(("--solver exact", flag) for flag in EPOCHS),
    *((exact, flag) for exact in ("--folds 3", "--vector_transform root") for flag in [*EPOCHS, "--solver epochs"]),
    *(("--search", flag) for flag in ("--hidden_units 8", "--weight_decay 0.1", "--learning_rate 0.1")),
]
ROWS = [
    ("--split_column fold", "--group_column patient"),
    ("--split_column fold", "--validation_split 0.2"),
    ("--split_column fold", "--test_split 0.3"),
    ("--split_column fold", "--split_seed 1"),
    ("--validation_split 0.0", "--patience 5"),
]
FREEZE = ["--freeze_layers 3", "--freeze_keras_layers 3", "--freeze_until block1_pool", "--freeze_all"]
MODEL_LEARNS = ["--augment flip", "--unfreeze_per_epoch 2"]
FINETUNE = [
    *((one, other) for place, one in enumerate(FREEZE) for other in FREEZE[place + 1 :]),
    *(("--freeze_all", flag) for flag in MODEL_LEARNS),
]
CLASSIFY = [
    *(
        ("--embeddings e", flag)
        for flag in (
            "--batch_size 8",
            "--max_image_pixels 9",
            "--engine openvino",
            "--truncated_images accept",
            "--label_from none",
        )
    ),
    ("--input i", "--embeddings e"),
]
PAIRS = [
    *((train, "--embeddings e --output o", pair) for pair in [*TRAIN, *ROWS]),
    *((finetune, "--input i --output o", pair) for pair in [*FINETUNE, *ROWS]),
    *((classify, "--classifier c --output o", pair) for pair in CLASSIFY),
]


@pytest.mark.parametrize(("job", "required", "pair"), PAIRS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_error_names_both_flags(job, required, pair):
    with pytest.raises(ImagebeamError) as caught:
        job.main([*required.split(), *" ".join(pair).split()])
    message = str(caught.value)
    for flag in pair:
        assert flag.split()[0] in message


@pytest.mark.parametrize("flag", ["--embedding_type list", "--embedding_dtype float16"])
def test_storage_flags_need_a_kept_embedding(flag):
    with pytest.raises(ImagebeamError, match=f"{flag}"):
        classify.main(["--input", "i", "--classifier", "c", "--output", "o", *flag.split()])


@pytest.mark.parametrize("job", [train, finetune, classify])
def test_help_begins_with_the_most_used_flags(job):
    parser = JobParser(job.__name__.rpartition(".")[2], job.DESCRIPTION)
    job.add_arguments(parser)
    text = parser.format_help()
    first = text.index(f"\n{MOST_USED}:")
    titles = [line for line in text[first:].splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles[0] == f"{MOST_USED}:"
    assert titles[-1] == "flags of every job:"
    assert text.startswith("usage: imagebeam")
    assert text.index("--output DIR", first) < text.index(titles[1])
    for name in parser.flags:  # each once
        assert text[first:].count(f"\n  {name} ") + text[first:].count(f"\n  {name}\n") == (name != "--help")
