"""The public data sets of the paper's runs: where they are on the hub, and which of their files are read.

``files`` are patterns below the source's folder; the first that matches anything is used, so that a hub snapshot and a
single file are both found. Names and fields are those of the published data sets; those marked with (*) were written
from their description and never seen.
"""

from dataclasses import dataclass
from pathlib import Path

from recipe.flowrl.common.errors import UserError


@dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
        name: of its folder below ``source``, and for ``skip``.
        split: ``train`` or ``test``.
        data_source: the rows' value of this column, as in the published data.
        repository: on the hub.
        files: patterns, in the order of preference.
    """

    name: str
    split: str
    data_source: str
    repository: str
    files: tuple[str, ...]


_DEEPCODER = "agentica-org/DeepCoder-Preview-Dataset"

MATH = (
    Source("dapo_math_17k", "train", "math_dapo", "BytedTsinghua-SIA/DAPO-Math-17k", ("**/*.parquet",)),
    Source("aime24", "test", "aime2024", "Maxwell-Jia/AIME_2024", ("**/*.jsonl", "**/*.parquet")),
    Source("aime25", "test", "aime2025", "yentinglin/aime_2025", ("**/*.jsonl", "**/*.parquet")),  # (*)
    Source("amc23", "test", "amc23", "zwhe99/amc23", ("**/*.jsonl", "**/*.parquet")),  # (*)
    Source("math500", "test", "math500", "HuggingFaceH4/MATH-500", ("**/*.jsonl*", "**/*.parquet")),
    Source("minerva_math", "test", "minerva", "math-ai/minervamath", ("**/*.jsonl*", "**/*.parquet")),
    Source("olympiadbench", "test", "olympiadbench", "math-ai/olympiadbench", ("**/*.jsonl*", "**/*.parquet")),
)
CODE = (
    Source("primeintellect", "train", "primeintellect", _DEEPCODER, ("primeintellect/train-*",)),  # (*)
    Source("taco", "train", "taco", _DEEPCODER, ("taco/train-*",)),  # (*)
    Source("lcb_train", "train", "livecodebench", _DEEPCODER, ("lcbv5/train-*",)),  # (*)
    Source("livecodebench", "test", "livecodebench", _DEEPCODER, ("lcbv5/test-*", "lcb_aug24_jan25*")),
    Source("codeforces", "test", "codeforces", _DEEPCODER, ("codeforces/test-*", "test_codeforces*")),
    Source(
        "humanevalplus", "test", "humanevalplus", "evalplus/humanevalplus", ("HumanEvalPlus.jsonl*", "**/*.parquet")
    ),
)

GSM8K = (
    Source("gsm8k", "train", "gsm8k", "openai/gsm8k", ("train.jsonl*", "main/train-*")),
    Source("gsm8k", "test", "gsm8k", "openai/gsm8k", ("test.jsonl*", "main/test-*")),
)

_AUTHORS = "xuekai/flowrl-data-collection"
AUTHORS = {  # (*) already in verl's schema; validation.parquet is misspelt there
    "math": (
        Source("math_data", "train", "math_dapo", _AUTHORS, ("math_data/**/*train*.parquet", "math_data/**/*dapo*")),
        Source("math_data", "test", "validation", _AUTHORS, ("math_data/**/va*.parquet", "math_data/**/test*.parquet")),
    ),
    "code": (
        Source("code_data", "train", "taco", _AUTHORS, ("code_data/**/*train*.parquet",)),
        Source("code_data", "test", "livecodebench", _AUTHORS, ("code_data/**/*test*.parquet", "code_data/**/va*")),
    ),
}


def locate(source: Source, root: Path) -> list[Path]:
    """The source's files below ``root``, in its folder or, as in a hub snapshot shared by several, in ``root`` itself.

    Raises:
        UserError: there are none; says what was looked for.
    """
    for pattern in source.files:
        for directory in (root / source.name, root / source.repository.rpartition("/")[2], root):
            if directory == root and pattern.startswith("**"):
                continue  # any file of any source would do
            found = [path for path in sorted(directory.glob(pattern)) if _is_data(path, directory)]
            if found:
                return found
    raise UserError(
        f"{source.name}: no {' or '.join(source.files)} in {root / source.name}: put the files of {source.repository} "
        f"there, or leave it out with skip={source.name}"
    )


def download(source: Source, root: Path) -> list[Path]:
    """Fetch the source's files from the hub into ``root``, with progress bars; those already there are kept.

    Raises:
        UserError: the hub can't be reached, or hasn't got them.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    directory = root / source.repository.rpartition("/")[2]
    patterns = [pattern.removeprefix("**/") for pattern in source.files]
    try:
        snapshot_download(source.repository, repo_type="dataset", allow_patterns=patterns, local_dir=directory)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"{source.name}: {source.repository} can't be downloaded ({' '.join(str(error).split())[:120]}): fetch it "
            "elsewhere and give its folder with source="
        ) from error
    return locate(source, root)


def _is_data(path: Path, root: Path) -> bool:
    """Whether it is a file, and no description, and none of those that a download leaves in hidden folders."""
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return path.is_file() and path.suffix != ".md" and not hidden
