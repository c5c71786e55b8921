"""Formats of shards and parts. The command line imports this module, so it imports nothing heavy."""

import enum


class InputFormat(enum.StrEnum):
    """How a shard stores its records."""

    TFRECORD = "tfrecord"
    WEBDATASET = "webdataset"
    PARQUET = "parquet"
    FILES = "files"
    MANIFEST = "manifest"


class LabelFrom(enum.StrEnum):
    """Where a record's label comes from; AUTO is the column where there is one, else the first folder."""

    AUTO = "auto"
    COLUMN = "column"
    FIRST_FOLDER = "first_folder"
    LAST_FOLDER = "last_folder"
    NONE = "none"

    @property
    def is_folder(self) -> bool:
        """Whether the folder's name is the label, even if a column has one."""
        return self in (LabelFrom.FIRST_FOLDER, LabelFrom.LAST_FOLDER)


KEEP_TYPES = ("string", "bool", "int32", "int64", "uint64", "float32", "float64", "binary")
"""What a kept column may be declared as, under the names pyarrow gives them."""


OUTPUT_COLUMNS = ("key", "uri", "label", "width", "height", "sha256", "embedding")
"""Columns that every row of embeddings has."""


def is_output_column(name: str) -> bool:
    """Whether the output uses the name itself, in whatever case: no further column of the input can have it."""
    folded = name.casefold()
    return folded in OUTPUT_COLUMNS or folded.startswith(("embedding_", "embedding."))


class TruncatedImages(enum.StrEnum):
    """What becomes of a JPEG whose data stops early."""

    REFUSE = "refuse"
    ACCEPT = "accept"


class EmbeddingType(enum.StrEnum):
    """The Arrow type of an embedding column; LIST is for readers that know no fixed-size lists."""

    FIXED_SIZE_LIST = "fixed_size_list"
    LIST = "list"


class EmbeddingDtype(enum.StrEnum):
    """What an embedding's values are stored as."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
